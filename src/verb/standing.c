/*-------------------------------------------------------------------------
 *
 * standing.c
 *	  Where a verification stands, by its row and those of its messages.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "utils/timestamp.h"

#include "verb/standing.h"

/* Work out the standing */
static void
judge(Standing *s, const MessageState *messages, int n, TimestampTz now)
{
	Verification *v = &s->v;
	TimestampTz failed_at = 0;

	/* What became of the messages: the last one speaks for all */
	s->channel = v->channel;
	for (int i = 0; i < n; i++)
	{
		const MessageState *m = &messages[i];

		s->channel = m->channel;
		if (m->message_id != NULL)
			s->message_id = m->message_id;
		if (m->sent_at != 0)
			s->sent_at = m->sent_at;
		if (m->delivered_at != 0 && s->delivered_at == 0)
			s->delivered_at = m->delivered_at;
		if (m->number % 2 == 0)
			s->fallback_used = true;
		if (m->sent_at != 0 || m->delivered_at != 0)
			s->has_outcome = true;
	}
	v->ended_reason = NULL;
	if (n > 0 && messages[n - 1].ended_reason != NULL)
	{
		v->ended_reason = messages[n - 1].ended_reason;
		failed_at = messages[n - 1].failed_at;
		if (messages[n - 1].provider_code != 0)
			s->error_detail = psprintf("%d%s%s", messages[n - 1].provider_code,
									   messages[n - 1].detail != NULL ? ": " : "",
									   messages[n - 1].detail != NULL ? messages[n - 1].detail : "");
		else if (messages[n - 1].detail != NULL)
			s->error_detail = pstrdup(messages[n - 1].detail);
	}

	/* What became of the verification */
	s->attempts = verb_attempts(v);
	if (v->verified_at != 0)
	{
		s->life = LIFE_VERIFIED;
		s->ended_at = v->verified_at;
	}
	else if (v->canceled_at != 0)
	{
		s->life = LIFE_CANCELED;
		s->ended_at = v->canceled_at;
	}
	else if (v->ended_reason != NULL)
	{
		s->life = LIFE_FAILED;
		s->ended_at = failed_at;
		s->error = v->ended_reason;
	}
	else if (s->attempts >= v->max_attempts)
	{
		s->life = LIFE_FAILED;
		s->ended_at = v->last_attempt_at;
		s->error = "too_many_attempts";
	}
	else if (v->expires_at <= now)
	{
		s->life = LIFE_EXPIRED;
		s->ended_at = v->expires_at;
	}
	else
		s->life = s->delivered_at != 0 ? LIFE_DELIVERED : LIFE_PENDING;
	if (s->life != LIFE_PENDING)
		s->has_outcome = true;
}

/* Work out what has come of the last send or resend */
static void
judge_last(Standing *s, const MessageState *messages, int n)
{
	const Verification *v = &s->v;

	s->outcome_channel = v->channel;
	for (int i = 0; i < n; i++)
	{
		const MessageState *m = &messages[i];

		/* A resend has the numbers behind those of the sends before it */
		if (m->number <= 2 * v->resends)
			continue;
		if (s->outcome != SEND_ACCEPTED)
			s->outcome_channel = m->channel;
		if (m->sent_at != 0 || m->delivered_at != 0)
		{
			s->outcome = SEND_ACCEPTED;
			s->outcome_channel = m->channel;
			s->outcome_message_id = m->message_id;
		}
		else if (m->failed_at != 0 && s->outcome == SEND_UNDER_WAY &&
				 (m->number % 2 == 0 || !v->fallback_sms || strcmp(m->channel, "whatsapp") != 0))
			s->outcome = SEND_FAILED;
	}
}

/* Look a verification up */
bool
standing_look(const pg_uuid_t *id, bool latest, Datum workspaces, Standing *s)
{
	MessageState *messages;
	int			n;
	char	   *detail;

	memset(s, 0, sizeof(Standing));
	if (!verification_find(workspaces, id, latest, &s->v))
		return false;
	n = verification_messages(&s->v, latest, &messages);
	judge(s, messages, n, GetCurrentTimestamp());
	judge_last(s, messages, n);

	/* Made in SPI's memory, which does not outlive the look-up */
	if (s->error_detail != NULL)
	{
		size_t		size = strlen(s->error_detail) + 1;

		detail = SPI_palloc(size);
		memcpy(detail, s->error_detail, size);
		s->error_detail = detail;
	}
	return true;
}
