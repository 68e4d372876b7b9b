/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  The guard against pumping.
 *
 * Who is paid for messages to a country's numbers sends codes there and
 * verifies none. So a send is refused, or recorded, when too many codes to
 * the country have not been verified, measured by what the workspace itself
 * verifies there. The figures are in shared memory (base/guard.c); who finds
 * none reads the history, while others who need it wait for a moment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xlog.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/guard.h"
#include "store/country.h"
#include "store/guard.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_guard_status);
EXPORTED_FUNCTION(otp_guard_unwritten);

/*
 * Advisory locks of SQL use 1 and 2 in this field of the lock tag: nobody
 * can hold a workspace up.
 */
#define GUARD_LOCK_METHOD 0x4755

/*
 * Reading takes a second at most, unless somebody has locked the history.
 * After two of them users are better served by an unchecked send.
 */
#define LOAD_PATIENCE_MS 2000
#define LOAD_LOOK_MS 5

/* Others may push a workspace out that was just read, when there are too many */
#define LOAD_TRIES 3

/* Most decisions that one database can have unwritten, and one view shows */
#define MAX_UNWRITTEN 4096

/* Read a workspace's history into shared memory */
static void
load(const Workspace *w, TimestampTz now)
{
	uint32		number = guard_load_begin(w->workspace_id, now);
	GuardCounts *counts;
	int			n;

	/* From here on what commits is counted; so the snapshot may come */
	counts = guard_read_history(w->workspace_id, now, &n);
	for (int i = 0; i < n; i++)
		guard_load_add(w->workspace_id, number, &counts[i]);
	guard_load_end(w->workspace_id, number);
	pfree(counts);
}

/* Wait a moment for whoever reads the history */
static void
wait_for_load(void)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("OtpGuardLoad");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOAD_LOOK_MS, wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Have a workspace's history in shared memory; false when that takes too long */
static bool
require_loaded(const Workspace *w, TimestampTz now)
{
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz since;
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) w->workspace_id, 0, GUARD_LOCK_METHOD);
	for (int tries = 0; !guard_is_known(w->workspace_id, now, &since);)
	{
		/*
		 * An error in between gives the lock back, and the next one begins
		 * anew
		 */
		if (LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
		{
			if (!guard_is_known(w->workspace_id, now, &since))
			{
				load(w, GetCurrentTimestamp());
				tries++;
			}
			LockRelease(&tag, ExclusiveLock, false);
			if (tries == LOAD_TRIES)
				break;
		}
		else
		{
			if (since != 0 && since < began)
				began = since;
			if (GetCurrentTimestamp() >= TimestampTzPlusMilliseconds(began, LOAD_PATIENCE_MS))
				return false;
			wait_for_load();
		}
	}
	return true;
}

/* Give the figures of a country, with what this transaction will count; false when they are not known */
static bool
look(const Workspace *w, const char *country, TimestampTz now, GuardFigures *figures)
{
	bool		read_days;

	if (!guard_look(w->workspace_id, country, now, figures, &read_days) &&
		(!require_loaded(w, now) ||
		 !guard_look(w->workspace_id, country, now, figures, &read_days)))
		return false;
	if (read_days)
	{
		int			n;
		GuardBest  *best = guard_read_best(w->workspace_id, now, &n);

		guard_set_best(w->workspace_id, best, n);
		pfree(best);
		(void) guard_look(w->workspace_id, country, now, figures, &read_days);
	}
	guard_pending_sum(w->workspace_id, country, now, figures, NULL);
	guard_judge(figures);
	return true;
}

/* Is a phone exempt? */
static bool
is_exempt(const Workspace *w, const char *phone)
{
	for (int i = 0; i < w->guard_exempt.count; i++)
	{
		if (strncmp(phone, w->guard_exempt.prefixes[i], strlen(w->guard_exempt.prefixes[i])) == 0)
			return true;
	}
	return false;
}

/* Refuse a send that looks like pumping, or record it */
void
guard_require(const Workspace *w, const char *phone, const char *channel, TimestampTz now)
{
	GuardFigures figures;
	GuardDecision decision;
	GuardCounts counts;
	char		country[GUARD_COUNTRY_LENGTH + 1];

	if (w->guard_mode == GUARD_OFF || is_exempt(w, phone))
		return;
	if (!guard_country(phone, country) || !look(w, country, now, &figures) || figures.reason == GUARD_FINE)
		return;

	memset(&decision, 0, sizeof(decision));
	decision.workspace_id = w->workspace_id;
	strlcpy(decision.country, country, sizeof(decision.country));
	decision.reason = figures.reason;
	decision.blocked = w->guard_mode == GUARD_BLOCK ? 1 : 0;
	decision.recorded = 1 - decision.blocked;
	decision.first_at = decision.last_at = now;
	decision.unverified = figures.reason == GUARD_DAY ? figures.unverified_day : figures.unverified_hour;
	decision.threshold = figures.reason == GUARD_DAY ? figures.threshold_day : figures.threshold_hour;
	guard_decide(&decision, &counts);
	if (w->guard_mode != GUARD_BLOCK)
		return;

	guard_pending_sum(w->workspace_id, country, now, NULL, &counts);
	error_raise(OTP_RATE_LIMIT_EXCEEDED, figures.reason == GUARD_DAY
				? "too many codes to this country were not verified within a day"
				: "too many codes to this country were not verified within an hour",
				"This is the guard against pumping, guard_mode in otp.workspaces. otp.guard_status() and otp.guard_decisions"
				" say what it has counted; the column guard_exempt_prefixes takes prefixes that it should let pass.",
				guard_wait(&counts, now), figures.reason == GUARD_DAY ? "guard_day" : "guard_hour");
}

/* Count at commit */
static void
note(const Workspace *w, const Verification *v, int sends, int verified)
{
	char		country[GUARD_COUNTRY_LENGTH + 1];

	/* Of what a policy function has shadowed nobody has got a code */
	if (w->guard_mode == GUARD_OFF || v->shadowed)
		return;
	if (guard_country(v->phone, country))
		guard_pending_add(v->workspace_id, country, v->created_at, sends, verified);
}

/* Count a send */
void
guard_note_sent(const Workspace *w, const Verification *v)
{
	note(w, v, 1, 0);
}

/* Count a success */
void
guard_note_verified(const Workspace *w, const Verification *v)
{
	note(w, v, 0, 1);
}

/* Tell how the guard sees a workspace */
Datum
otp_guard_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	const Workspace *w;
	const Countries *countries;
	GuardCounts *counts;
	int			n;
	TimestampTz now = GetCurrentTimestamp();
	char	   *workspace = verb_text(fcinfo, 0, "workspace", NAMEDATALEN);

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "guard_status", VERB_READS);
	w = workspace_acting(scope.caller, workspace);

	/*
	 * While the guard is off nobody keeps the figures up to date, nor does
	 * anybody on a standby: then they are those of the history.
	 */
	if (w->guard_mode != GUARD_OFF && !RecoveryInProgress() && require_loaded(w, now))
		counts = guard_copy_all(w->workspace_id, &n);
	else
		counts = guard_read_history(w->workspace_id, now, &n);
	countries = country_kept();
	for (int i = 0; i < n; i++)
	{
		GuardFigures f;
		bool		exempt;
		Datum		values[9];
		bool		nulls[9] = {false};

		guard_sum(&counts[i], guard_bucket(now), &f);
		guard_judge(&f);
		if (f.sends_day == 0)
			continue;
		exempt = country_covered(countries, counts[i].country, w->guard_exempt.prefixes, w->guard_exempt.count);
		values[0] = CStringGetTextDatum(counts[i].country);
		values[1] = Int32GetDatum(f.unverified_hour);
		values[2] = Int32GetDatum(f.threshold_hour);
		values[3] = Int32GetDatum(f.unverified_day);
		values[4] = Int32GetDatum(f.threshold_day);
		values[5] = Int32GetDatum(f.verified_hour);
		values[6] = Int32GetDatum(f.verified_day);
		values[7] = BoolGetDatum(exempt);
		values[8] = BoolGetDatum(f.reason != GUARD_FINE && !exempt);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	verb_end(&scope);
	return (Datum) 0;
}

/* Is a workspace among these? */
static bool
is_among(Datum ids, int32 workspace_id)
{
	ArrayType  *array = DatumGetArrayTypeP(ids);
	const int32 *values = (const int32 *) ARR_DATA_PTR(array);
	int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

	for (int i = 0; i < n; i++)
	{
		if (values[i] == workspace_id)
			return true;
	}
	return false;
}

/* Give the decisions that are not in otp.guard_log yet */
Datum
otp_guard_unwritten(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	GuardDecision *decisions;
	Datum		workspaces;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "guard_unwritten", VERB_READS);
	workspaces = workspace_granted(scope.caller, true);
	decisions = palloc(sizeof(GuardDecision) * MAX_UNWRITTEN);
	n = guard_has_decisions() ? guard_decisions(decisions, MAX_UNWRITTEN) : 0;
	for (int i = 0; i < n; i++)
	{
		const GuardDecision *d = &decisions[i];
		Datum		values[9];
		bool		nulls[9] = {false};

		if (!is_among(workspaces, d->workspace_id))
			continue;
		values[0] = Int32GetDatum(d->workspace_id);
		values[1] = CStringGetTextDatum(d->country);
		values[2] = CStringGetTextDatum(d->reason == GUARD_DAY ? "day" : "hour");
		values[3] = Int64GetDatum(d->blocked);
		values[4] = Int64GetDatum(d->recorded);
		values[5] = TimestampTzGetDatum(d->first_at);
		values[6] = TimestampTzGetDatum(d->last_at);
		values[7] = Int32GetDatum(d->unverified);
		values[8] = Int32GetDatum(d->threshold);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	verb_end(&scope);
	return (Datum) 0;
}
