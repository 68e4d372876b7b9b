/*
 * inbox.c
 *		What the phones show.
 *
 * Messages lie in a ring by sequence number; a hash of the phone number leads
 * to the newest message of a bucket, and each message to the one before it.
 */
#include "simulator.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUCKETS 65536

static pthread_mutex_t inbox_lock = PTHREAD_MUTEX_INITIALIZER;
static Message **ring;
static int64_t newest_in_bucket[BUCKETS];
static int64_t last_seq;
static int64_t cleared_seq;		/* messages up to this one are gone */
static _Atomic unsigned generation;
static char sid_salt[17];

/* Allocate the ring. */
void
inbox_start(void)
{
	ring = must_alloc(settings.inbox_limit * sizeof(Message *));
	random_hex(sid_salt, 16);
}

/* Make an empty message with one reference. */
Message *
message_new(Api api)
{
	Message    *msg = must_alloc(sizeof(Message));

	msg->refs = 1;
	msg->api = api;
	return msg;
}

/* Take a reference. */
Message *
message_ref(Message *msg)
{
	msg->refs++;
	return msg;
}

/* Give a reference back. */
void
message_unref(Message *msg)
{
	if (msg == NULL || --msg->refs > 0)
		return;
	free(msg->account);
	free(msg->text);
	free(msg->code);
	free(msg->template_name);
	free(msg->language);
	free(msg->from);
	free(msg->opaque);
	free(msg->otp_id);
	free(msg->status_callback);
	free(msg->messaging_service_sid);
	free(msg->raw);
	free(msg);
}

/* Give a message the id its provider would. */
void
message_name(Message *msg, int64_t number)
{
	unsigned char bytes[64];
	char		hex[20];
	int			phone_len = (int) strlen(msg->to) - 1;
	int			n;

	if (msg->api == API_TWILIO)
	{
		snprintf(msg->id, sizeof(msg->id), "SM%s%016llx", sid_salt, (unsigned long long) number);
		return;
	}

	/* as seen in real ids: a length-prefixed phone, then 18 hex digits */
	random_hex(hex, 8);
	n = snprintf((char *) bytes, sizeof(bytes), "%c%c%c%s", 0x1c, 0x18, phone_len, msg->to + 1);
	memcpy(bytes + n, "\x15\x02\x00\x11\x18\x12", 6);
	n += 6;
	n += snprintf((char *) bytes + n, sizeof(bytes) - n, "%.8s%010llX", hex,
				  (unsigned long long) number & 0xffffffffffULL);
	bytes[n++] = 0;
	strcpy(msg->id, "wamid.");
	EVP_EncodeBlock((unsigned char *) msg->id + 6, bytes, n);
}

/* The bucket of a phone number. */
static unsigned
bucket_of(const char *phone)
{
	unsigned	h = 2166136261u;

	for (; *phone; phone++)
		h = (h ^ (unsigned char) *phone) * 16777619u;
	return (h ^ (h >> 16)) % BUCKETS;
}

/* The oldest sequence number still kept, less one; the lock is held. */
static int64_t
inbox_floor(void)
{
	int64_t		fallen = last_seq - settings.inbox_limit;

	return fallen > cleared_seq ? fallen : cleared_seq;
}

/* Number, name and keep a message; takes a reference of its own. */
void
inbox_add(Message *msg)
{
	unsigned	bucket = bucket_of(msg->to);
	Message    *old;

	message_ref(msg);
	pthread_mutex_lock(&inbox_lock);
	msg->seq = ++last_seq;
	message_name(msg, msg->seq);
	msg->chain = newest_in_bucket[bucket];
	newest_in_bucket[bucket] = msg->seq;
	old = ring[msg->seq % settings.inbox_limit];
	ring[msg->seq % settings.inbox_limit] = msg;
	pthread_mutex_unlock(&inbox_lock);

	message_unref(old);
	generation++;
	http_inbox_changed();
}

/* Empty the inbox; numbers go on. */
void
inbox_clear(void)
{
	pthread_mutex_lock(&inbox_lock);
	for (int64_t seq = inbox_floor() + 1; seq <= last_seq; seq++)
	{
		message_unref(ring[seq % settings.inbox_limit]);
		ring[seq % settings.inbox_limit] = NULL;
	}
	cleared_seq = last_seq;
	pthread_mutex_unlock(&inbox_lock);
}

/* A number that changes with each message. */
unsigned
inbox_generation(void)
{
	return generation;
}

/* Find a message by number; the caller gives the reference back. */
Message *
inbox_by_seq(int64_t seq)
{
	Message    *msg = NULL;

	pthread_mutex_lock(&inbox_lock);
	if (seq > inbox_floor() && seq <= last_seq)
		msg = message_ref(ring[seq % settings.inbox_limit]);
	pthread_mutex_unlock(&inbox_lock);
	return msg;
}

/* Find a Twilio message; its number is in its sid. */
Message *
inbox_by_sid(const char *sid)
{
	Message    *msg;

	if (strlen(sid) != 34 || strncmp(sid, "SM", 2) != 0 || strncmp(sid + 2, sid_salt, 16) != 0)
		return NULL;
	msg = inbox_by_seq(strtoll(sid + 18, NULL, 16));
	if (msg && strcmp(msg->id, sid) != 0)
	{
		message_unref(msg);
		return NULL;
	}
	return msg;
}

/* The newest message of a phone; the caller gives the reference back. */
Message *
inbox_newest(const char *phone)
{
	Message    *found = NULL;
	int64_t		seq;

	pthread_mutex_lock(&inbox_lock);
	seq = newest_in_bucket[bucket_of(phone)];
	while (found == NULL && seq > inbox_floor())
	{
		Message    *msg = ring[seq % settings.inbox_limit];

		if (strcmp(msg->to, phone) == 0)
			found = message_ref(msg);
		seq = msg->chain;
	}
	pthread_mutex_unlock(&inbox_lock);
	return found;
}

/*
 * Collect messages, oldest first; each has a reference for the caller.  With
 * a limit, the oldest ones after "since" or the newest ones of all.
 */
static int
inbox_collect(Message ***out, const char *phone, int64_t since, int limit, bool newest)
{
	Message   **found = NULL;
	int			count = 0;
	int			size = 0;
	int64_t		floor;
	int64_t		seq;
	bool		backwards = phone != NULL || newest;

	pthread_mutex_lock(&inbox_lock);
	floor = inbox_floor();
	if (since > floor)
		floor = since;
	if (!backwards)
		seq = floor + 1;
	else if (phone)
		seq = newest_in_bucket[bucket_of(phone)];
	else
		seq = last_seq;

	while (seq > floor && seq <= last_seq)
	{
		Message    *msg = ring[seq % settings.inbox_limit];

		if (phone == NULL || strcmp(msg->to, phone) == 0)
		{
			if (count == size)
			{
				size = size ? size * 2 : 16;
				found = realloc(found, size * sizeof(Message *));
				if (found == NULL)
					abort();
			}
			found[count++] = message_ref(msg);
			if (limit > 0 && count >= limit && (newest || !backwards))
				break;
		}
		seq = !backwards ? seq + 1 : phone ? msg->chain : seq - 1;
	}
	pthread_mutex_unlock(&inbox_lock);

	if (backwards)
		for (int i = 0; i < count / 2; i++)
		{
			Message    *swap = found[i];

			found[i] = found[count - 1 - i];
			found[count - 1 - i] = swap;
		}
	while (limit > 0 && count > limit)
		message_unref(found[--count]);
	*out = found;
	return count;
}

/* Describe messages as a JSON array; returns how many. */
int
inbox_describe(Text *out, const char *phone, int64_t since, int limit, bool newest)
{
	Message   **found;
	int			count = inbox_collect(&found, phone, since, limit, newest);

	text_puts(out, "[");
	for (int i = 0; i < count; i++)
	{
		Message    *msg = found[i];
		time_t		seconds = msg->received_us / 1000000;
		struct tm	tm;
		char		iso[32];

		gmtime_r(&seconds, &tm);
		strftime(iso, sizeof(iso), "%Y-%m-%dT%H:%M:%S", &tm);
		text_printf(out, "%s\n{\"seq\":%lld,\"api\":\"%s\",\"channel\":\"%s\",\"to\":\"%s\",\"text\":",
					i ? "," : "", (long long) msg->seq, api_name(msg->api),
					msg->api == API_META ? "whatsapp" : "sms", msg->to);
		text_json(out, msg->text);
		text_puts(out, ",\"code\":");
		text_json(out, msg->code);
		text_puts(out, ",\"template\":");
		text_json(out, msg->template_name);
		text_puts(out, ",\"language\":");
		text_json(out, msg->language);
		text_puts(out, ",\"from\":");
		text_json(out, msg->from);
		text_puts(out, ",\"account\":");
		text_json(out, msg->account);
		text_puts(out, ",\"otp_id\":");
		text_json(out, msg->otp_id);
		text_printf(out, ",\"message_id\":\"%s\",\"status\":\"%s\"", msg->id, msg->status);
		text_printf(out, ",\"received_at\":\"%s.%06dZ\",\"received_us\":%lld", iso,
					(int) (msg->received_us % 1000000), (long long) msg->received_us);
		if (msg->validity_period)
			text_printf(out, ",\"validity_period\":%d", msg->validity_period);
		else
			text_puts(out, ",\"validity_period\":null");
		text_puts(out, ",\"status_callback\":");
		text_json(out, msg->status_callback);
		text_puts(out, ",\"raw\":");
		text_json_n(out, msg->raw, msg->raw_len);
		text_puts(out, "}");
		message_unref(msg);
	}
	text_puts(out, "]\n");
	free(found);
	return count;
}

#define SCREEN_WIDTH 46

/* Draw one line of the screen, filled with blanks. */
static void
draw_line(Text *out, const char *s, size_t len)
{
	char	   *copy = must_copy_n(s, len);
	int			width = utf8_length(copy);

	text_printf(out, "│ %s%*s │\n", copy, width < SCREEN_WIDTH ? SCREEN_WIDTH - width : 0, "");
	free(copy);
}

/* Draw text, broken between words. */
static void
draw_text(Text *out, const char *s)
{
	while (*s)
	{
		const char *end = s;
		const char *blank = NULL;
		int			width = 0;

		while (*end && *end != '\n' && width <= SCREEN_WIDTH)
		{
			if (*end == ' ')
				blank = end;
			do
				end++;
			while ((*end & 0xc0) == 0x80);
			width++;
		}
		if (width > SCREEN_WIDTH && blank)
			end = blank;
		draw_line(out, s, end - s);
		s = *end ? end + 1 : end;
	}
}

/* Draw a horizontal line. */
static void
draw_border(Text *out, const char *left, const char *right)
{
	text_puts(out, left);
	for (int i = 0; i < SCREEN_WIDTH + 2; i++)
		text_puts(out, "─");
	text_puts(out, right);
	text_puts(out, "\n");
}

/* Draw the screen of a phone. */
void
inbox_draw(Text *out, const char *phone)
{
	Message   **found;
	int			count = inbox_collect(&found, phone, 0, 0, false);

	draw_border(out, "┌", "┐");
	draw_line(out, phone ? phone : "all phones", strlen(phone ? phone : "all phones"));
	draw_border(out, "├", "┤");
	if (count == 0)
		draw_text(out, "(no messages)");
	for (int i = 0; i < count; i++)
	{
		Message    *msg = found[i];
		time_t		seconds = msg->received_us / 1000000;
		struct tm	tm;
		char		head[128];
		size_t		len;

		gmtime_r(&seconds, &tm);
		len = snprintf(head, sizeof(head), "%s  %s%s", msg->api == API_META ? "WhatsApp" : "SMS",
					   phone ? "" : "to ", phone ? "" : msg->to);
		while (len > 0 && head[len - 1] == ' ')
			head[--len] = '\0';
		snprintf(head + len, sizeof(head) - len, "%*s", (int) (SCREEN_WIDTH - 8 - len), "");
		strftime(head + strlen(head), 16, "%H:%M:%S", &tm);
		if (i)
			draw_line(out, "", 0);
		draw_line(out, head, strlen(head));
		draw_text(out, msg->text);
		if (msg->api == API_META)
			draw_line(out, "[ Copy code ]", 13);
		message_unref(msg);
	}
	draw_border(out, "└", "┘");
	free(found);
}
