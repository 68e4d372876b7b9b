/*-------------------------------------------------------------------------
 *
 * limits.c
 *	  The limits of sending.
 *
 * Per second in shared memory; per phone by counting its rows under a lock
 * and the latest snapshot, which is true after a restart, for concurrent
 * senders and in every isolation level.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/timestamp.h"

#include "base/limiter.h"
#include "verb/verb.h"

#define HOUR (3600 * USECS_PER_SEC)
#define DAY (24 * HOUR)

/* Give the seconds until a time, at least 1 */
static int
seconds_until(TimestampTz then, TimestampTz now)
{
	int64		s = (then - now + USECS_PER_SEC - 1) / USECS_PER_SEC;

	return (int) Max(s, 1);
}

/* Refuse when the newest sends within a window fill the limit */
static void
check_window(const PhoneSend *sends, int n, TimestampTz now, int64 window, int limit,
			 const char *name, const char *message)
{
	int			messages = 0;

	if (limit == 0)
		return;
	for (int i = 0; i < n && sends[i].created_at > now - window; i++)
	{
		messages += sends[i].messages;

		/* This one has to leave the window before there is room */
		if (messages >= limit)
			error_raise(OTP_RATE_LIMIT_EXCEEDED, message,
						"Wait for the seconds of retry_after, or raise the limit in otp.workspaces.",
						seconds_until(sends[i].created_at + window, now), name);
	}
}

/* Are two optional texts the same? */
static bool
same_text(const char *a, const char *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return strcmp(a, b) == 0;
}

/* Check and take the limits */
void
limits_take(const Workspace *w, const char *phone, const char *template_name,
			const char *context, TimestampTz now)
{
	PhoneSend  *sends;
	int			n;
	int			retry_after;
	int64		window = 0;
	int			limit = 0;

	/* Read as far back, and as many, as the policy asks about */
	if (w->sends_per_phone_day > 0)
	{
		window = DAY;
		limit = w->sends_per_phone_day;
	}
	if (w->sends_per_phone_hour > 0)
	{
		window = Max(window, HOUR);
		limit = Max(limit, w->sends_per_phone_hour);
	}
	if (w->resend_cooldown > 0)
	{
		window = Max(window, Min(w->resend_cooldown, DAY));
		limit = Max(limit, 100);
	}

	if (window > 0)
	{
		verification_lock_phone(w->workspace_id, phone);

		/* Whoever held it has sent since: perhaps into the next day's drawer */
		now = GetCurrentTimestamp();
		n = verification_phone_sends(w->workspace_id, phone, now - window, now, limit, &sends);

		for (int i = 0; i < n && w->resend_cooldown > 0; i++)
		{
			if (sends[i].last_sent_at > now - w->resend_cooldown &&
				same_text(sends[i].template_name, template_name) &&
				same_text(sends[i].context, context))
				error_raise(OTP_RATE_LIMIT_EXCEEDED, "a code was sent to this phone a moment ago",
							"Wait for the seconds of retry_after. Call it in FROM: SELECT (otp_send(...)).* calls it once per column.",
							seconds_until(sends[i].last_sent_at + w->resend_cooldown, now),
							"resend_cooldown");
		}
		check_window(sends, n, now, HOUR, w->sends_per_phone_hour, "sends_per_phone_hour",
					 "too many codes were sent to this phone within an hour");
		check_window(sends, n, now, DAY, w->sends_per_phone_day, "sends_per_phone_day",
					 "too many codes were sent to this phone within a day");
	}

	/* Last, so that a refused send takes nothing from it */
	if (w->sends_per_second > 0 &&
		!limiter_take(w->workspace_id, w->sends_per_second, &retry_after))
		error_raise(OTP_RATE_LIMIT_EXCEEDED, "too many codes are being sent",
					"Wait for the seconds of retry_after, or raise sends_per_second in otp.workspaces.",
					retry_after, "sends_per_second");
}
