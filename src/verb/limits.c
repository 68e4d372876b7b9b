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
#include "store/failures.h"
#include "verb/send.h"

/* Give the seconds until a time, at least 1 */
int
limits_seconds_until(TimestampTz then, TimestampTz now)
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
						limits_seconds_until(sends[i].created_at + window, now), name);
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

/* How far back, and how many sends, does the policy ask about? False when it asks about none */
static bool
choose_window(const Workspace *w, int64 *window, int *limit)
{
	*window = 0;
	*limit = 0;
	if (w->sends_per_phone_day > 0)
	{
		*window = LIMITS_DAY;
		*limit = w->sends_per_phone_day;
	}
	if (w->sends_per_phone_hour > 0)
	{
		*window = Max(*window, LIMITS_HOUR);
		*limit = Max(*limit, w->sends_per_phone_hour);
	}
	if (w->resend_cooldown > 0)
	{
		*window = Max(*window, Min(w->resend_cooldown, LIMITS_DAY));
		*limit = Max(*limit, 100);
	}
	return *window > 0;
}

/* Check the limits per phone */
void
limits_take(const Workspace *w, const char *phone, const char *template_name,
			const char *context, TimestampTz now)
{
	PhoneSend  *sends;
	int			n;
	int64		window;
	int			limit;

	if (!choose_window(w, &window, &limit))
		return;
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
						limits_seconds_until(sends[i].last_sent_at + w->resend_cooldown, now),
						"resend_cooldown");
	}
	check_window(sends, n, now, LIMITS_HOUR, w->sends_per_phone_hour, "sends_per_phone_hour",
				 "too many codes were sent to this phone within an hour");
	check_window(sends, n, now, LIMITS_DAY, w->sends_per_phone_day, "sends_per_phone_day",
				 "too many codes were sent to this phone within a day");
}

/* How many may be sent at once? */
static int
burst(const Workspace *w)
{
	return w->sends_burst > 0 ? w->sends_burst : w->sends_per_second;
}

/* Take a send from those of this second */
void
limits_take_second(const Workspace *w)
{
	int			retry_after;

	if (w->sends_per_second > 0 &&
		!limiter_take(w->workspace_id, w->sends_per_second, burst(w), &retry_after))
		error_raise(OTP_RATE_LIMIT_EXCEEDED, "too many codes are being sent",
					"Wait for the seconds of retry_after, or raise sends_per_second or sends_burst in otp.workspaces.",
					retry_after, "sends_per_second");
}

/* Tell of one window */
static void
tell_window(const PhoneSend *sends, int n, TimestampTz now, int64 window, int max, const char *name,
			void (*tell) (void *arg, const LimitUse *use), void *arg)
{
	LimitUse	use = {name, NULL, max};

	if (max == 0)
		return;
	for (int i = 0; i < n && sends[i].created_at > now - window; i++)
	{
		/* As check_window counts: this one has to leave before there is room */
		if (use.used < max && use.used + sends[i].messages >= max)
			use.free_at = sends[i].created_at + window;
		use.used += sends[i].messages;
		use.resets_at = Max(use.resets_at, sends[i].created_at + window);
	}
	tell(arg, &use);
}

/* Tell of a phone's wrong guesses */
static void
tell_failures(const Workspace *w, const char *phone, void (*tell) (void *arg, const LimitUse *use), void *arg)
{
	PhoneFailures f;

	if (w->failures_per_phone_day == 0 && w->max_failures_in_row == 0)
		return;
	phone_failures_now(w, phone, &f);
	if (w->failures_per_phone_day > 0)
	{
		LimitUse	use = {"failures_per_phone_day", NULL, w->failures_per_phone_day, f.failures};

		/* All of them leave together, a day after the first */
		if (f.failures > 0)
			use.resets_at = f.since + LIMITS_DAY;
		if (f.failures >= w->failures_per_phone_day)
			use.free_at = use.resets_at;
		tell(arg, &use);
	}
	if (w->max_failures_in_row > 0)
	{
		LimitUse	use = {"failures_in_row", NULL, w->max_failures_in_row, f.in_row};

		/* A right guess ends the row; until then it makes the next one wait */
		use.free_at = f.free_at;
		tell(arg, &use);
	}
}

/* Tell of the limits */
void
limits_tell(const Workspace *w, const char *phone, TimestampTz now,
			void (*tell) (void *arg, const LimitUse *use), void *arg)
{
	int64		window;
	int			limit;

	if (w->sends_per_second > 0)
	{
		LimitUse	use = {"sends_per_second", NULL, burst(w)};
		int			left;
		double		full_after;

		limiter_look(w->workspace_id, w->sends_per_second, burst(w), &left, &full_after);
		use.used = use.max - left;
		if (full_after > 0)
			use.resets_at = now + (int64) (full_after * USECS_PER_SEC);
		if (left == 0)
			use.free_at = now + USECS_PER_SEC / w->sends_per_second;
		tell(arg, &use);
	}
	if (phone != NULL && choose_window(w, &window, &limit))
	{
		PhoneSend  *sends;
		int			n = verification_phone_sends(w->workspace_id, phone, now - window, now, limit, &sends);

		tell_window(sends, n, now, LIMITS_HOUR, w->sends_per_phone_hour, "sends_per_phone_hour", tell, arg);
		tell_window(sends, n, now, LIMITS_DAY, w->sends_per_phone_day, "sends_per_phone_day", tell, arg);

		/*
		 * Of the newest send: one with another template or context need not
		 * wait
		 */
		if (w->resend_cooldown > 0)
		{
			LimitUse	use = {"resend_cooldown", NULL, 1};

			for (int i = 0; i < n; i++)
			{
				if (sends[i].last_sent_at > now - w->resend_cooldown)
				{
					use.used = 1;
					use.resets_at = Max(use.resets_at, sends[i].last_sent_at + w->resend_cooldown);
					use.free_at = use.resets_at;
				}
			}
			tell(arg, &use);
		}
	}
	if (phone != NULL)
		tell_failures(w, phone, tell, arg);
}
