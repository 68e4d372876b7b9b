/*-------------------------------------------------------------------------
 *
 * account.c
 *	  The provider accounts a sender uses, and when it had better not.
 *
 * Every account has a circuit breaker:
 *
 *		closed --- an account error, or BREAKER_FAILURES outages in a row ---> open
 *		open --- its time is up, the next message is the trial ---> half open
 *		half open --- the provider answers ---> closed
 *		half open --- it fails again ---> open, for twice the time
 *		any --- the account was configured anew ---> closed
 *
 * While it is open or half open, messages that may go by SMS instead do so at
 * once; the others wait. An overloaded account is not broken: it is left
 * alone for a moment, and then used at a slower pace, which quickens again
 * with every message it takes.
 *
 * Nor may one that hangs take all requests that can be in flight: each has
 * its share.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/keyring.h"
#include "base/seal.h"
#include "worker/sender.h"

/* Outages in a row that open the breaker */
#define BREAKER_FAILURES 5

/* How long it stays open at first and at most, after an outage */
#define OUTAGE_DELAY_MS 1000
#define OUTAGE_DELAY_MAX_MS 60000

/* The same after an account error, which somebody has to mend */
#define REFUSED_DELAY_MS 5000
#define REFUSED_DELAY_MAX_MS 300000

/* While the trial is under way, look again after this long. */
#define PROBE_LOOK_MS 200

/* An account whose key is missing is tried again after this long. */
#define PROBLEM_LOOK_MS 5000

/* With one that only a new configuration can mend, messages look this often. */
#define PROBLEM_WAIT_MS 1000

/* Throttled: how long to leave the account alone, first and at most */
#define OVERLOAD_HOLD_MS 500
#define OVERLOAD_HOLD_MAX_MS 30000

/* Throttled: time between starts, first and at most; below the least, no limit */
#define GAP_FIRST_US INT64CONST(10000)
#define GAP_MAX_US INT64CONST(1000000)
#define GAP_LEAST_US INT64CONST(500)

/*
 * An account may have this many times as many requests in flight as are still
 * free: one alone gets three quarters of otp.max_in_flight, and however many
 * hang, the next one finds some left.
 */
#define SHARE_FACTOR 3

/* The configuration is looked at this often, should a change go unheard. */
#define REFRESH_MS 30000

static HTAB *accounts;
static HTAB *routes;
static HTAB *numbers;			/* SendingNumber */
static List *arming = NIL;		/* of those, in TopMemoryContext */
static uint32 generation = 1;
static TimestampTz refreshed_at = 0;
static int	troubled = 0;		/* breakers that are not closed */
static int	all_admitted = 0;	/* of all accounts */

/* Set up the tables */
void
accounts_init(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(Account);
	accounts = hash_create("otp accounts", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.entrysize = sizeof(RouteEntry);
	routes = hash_create("otp routes", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.keysize = sizeof(((SendingNumber *) NULL)->key);
	ctl.entrysize = sizeof(SendingNumber);
	numbers = hash_create("otp sending numbers", 64, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* ---- reading ---- */

/* Close a breaker */
static void
close_breaker(Account *a, TimestampTz now)
{
	bool		was_troubled = a->breaker.state != BREAKER_CLOSED;

	if (was_troubled)
		troubled--;
	a->breaker.state = BREAKER_CLOSED;
	a->breaker.failures = 0;
	a->breaker.account_refused = false;
	a->delay_ms = 0;
	a->probing = false;
	roster_breaker_set(&a->breaker);
	if (was_troubled)
		ereport(LOG,
				(errmsg("provider account %d is in use again", a->account_id)));
	owed_release_held(a->account_id, now);
}

/* Parse JSON of the database */
static json_t *
parse_json(const char *text)
{
	char	   *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	return json_from_text(utf8, strlen(utf8));
}

/* Open the secrets; NULL with problem set when that cannot be done */
static json_t *
open_secrets(Account *a, const RouteAccount *row)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char		purpose[40];
	json_t	   *volatile secrets = NULL;

	if (row->secrets == NULL)
	{
		a->problem = "the account has no secrets";
		return NULL;
	}
	if (!keyring_has(row->key_id))
	{
		a->problem = "the key that sealed the account's secrets is not in the key file";
		a->problem_passes = true;
		return NULL;
	}

	/* A forged or damaged value is this account's trouble only */
	snprintf(purpose, sizeof(purpose), "provider_accounts:%d", a->account_id);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		size_t		length;
		char	   *plain = unseal(row->secrets, purpose, row->key_id, &length);

		secrets = json_from_text(plain, length);
		explicit_bzero(plain, length);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (secrets == NULL)
		a->problem = "the account's secrets cannot be opened";
	return secrets;
}

/* What the account's receipts come from */
const char *
account_own_number(const Account *a)
{
	const char *own = channel_string(a->provider.settings, "phone_number_id");

	if (own == NULL)
		own = channel_string(a->provider.settings, "account_sid");
	return own != NULL ? own : "";
}

/* Find a number, or make it known; NULL when it cannot be one */
static SendingNumber *
find_number(int32 account_id, const char *number)
{
	SendingNumber key;
	SendingNumber *n;
	bool		found;

	if (number[0] == '\0' || strlen(number) >= sizeof(key.key.number))
		return NULL;
	memset(&key, 0, sizeof(key));
	key.key.account_id = account_id;
	strlcpy(key.key.number, number, sizeof(key.key.number));
	n = hash_search(numbers, &key.key, HASH_ENTER, &found);
	if (!found)
		n->armed = n->arming = false;
	return n;
}

/* Give a workspace's number at an account */
SendingNumber *
account_number(const Account *a, int32 workspace_id, bool sms)
{
	const Route *route = account_known_route(workspace_id);

	/* Twilio's receipts name the account, whatever the sender */
	if (!sms && route != NULL && route->whatsapp_sender != NULL && route->whatsapp_account == a->account_id)
		return find_number(a->account_id, route->whatsapp_sender);
	return find_number(a->account_id, account_own_number(a));
}

/* Note that a number's receipts come; that is in this turn's transaction */
void
account_arm(SendingNumber *number)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	arming = lappend(arming, number);
	MemoryContextSwitchTo(old);
	number->arming = true;
}

/* The transaction has ended */
void
accounts_armed(bool written)
{
	ListCell   *cell;

	foreach(cell, arming)
	{
		SendingNumber *number = lfirst(cell);

		number->arming = false;
		number->armed |= written;
	}
	list_free(arming);
	arming = NIL;
}

/* Take over which numbers' receipts have come */
static void
take_numbers(int32 account_id, const RouteAccount *row)
{
	HASH_SEQ_STATUS seq;
	SendingNumber *n;

	hash_seq_init(&seq, numbers);
	while ((n = hash_seq_search(&seq)) != NULL)
	{
		if (n->key.account_id == account_id)
			n->armed = false;
	}
	for (int i = 0; i < row->nreceipts_from; i++)
	{
		n = find_number(account_id, row->receipts_from[i]);
		if (n != NULL)
			n->armed = true;
	}
}

/* Take over a row */
static void
take_account(Account *a, const RouteAccount *row)
{
	MemoryContext old;

	json_decref(a->provider.settings);
	json_decref(a->provider.secrets);
	a->provider.settings = NULL;
	a->provider.secrets = NULL;
	a->problem = NULL;
	a->problem_passes = false;

	if (a->context == NULL)
		a->context = AllocSetContextCreate(TopMemoryContext, "otp account", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(a->context);
	old = MemoryContextSwitchTo(a->context);
	a->provider.account_id = a->account_id;
	a->provider.name = pstrdup(row->name);
	a->provider.provider = pstrdup(row->provider);
	MemoryContextSwitchTo(old);

	a->provider.settings = parse_json(row->settings);
	take_numbers(a->account_id, row);
	if (a->provider.settings == NULL)
		a->problem = "the account's settings cannot be read";
	else
		a->provider.secrets = open_secrets(a, row);
	a->provider.version = row->version;

	if (a->problem != NULL)
	{
		char		message[ROSTER_ERROR_SIZE];
		char	   *why = NULL;

		/*
		 * There may be a file, but none that can be used. Its name is not for
		 * those who read otp.messages.
		 */
		if (a->problem_passes)
			(void) keyring_available(&why);
		snprintf(message, sizeof(message), "provider account %d: %s", a->account_id,
				 why != NULL ? why : a->problem);
		roster_report_error(message);

		/* Once, however often it is looked at in vain */
		if (strcmp(a->reported, message) != 0)
			ereport(LOG,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("provider account %d cannot be used: %s", a->account_id,
							why != NULL ? why : a->problem)));
		strlcpy(a->reported, message, ROSTER_ERROR_SIZE);
	}
	else
		a->reported[0] = '\0';
}

/* Have everything checked that may have changed */
void
accounts_refresh(void)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	Account    *a;
	int32	   *ids;
	int			n = 0;

	if (!route_changed() && now < TimestampTzPlusMilliseconds(refreshed_at, REFRESH_MS))
		return;
	refreshed_at = now;
	generation++;

	/*
	 * What is in trouble is checked at once: messages that wait for it do not
	 * look themselves. Not within the scan, which an error would leave open.
	 */
	ids = palloc((hash_get_num_entries(accounts) + 1) * sizeof(int32));
	hash_seq_init(&seq, accounts);
	while ((a = hash_seq_search(&seq)) != NULL)
	{
		if (a->breaker.state != BREAKER_CLOSED)
			ids[n++] = a->account_id;
	}
	for (int i = 0; i < n; i++)
		(void) account_get(ids[i], now);
}

/* Find a workspace's route */
const Route *
account_route(int32 workspace_id)
{
	bool		found;
	RouteEntry *entry = hash_search(routes, &workspace_id, HASH_ENTER, &found);
	MemoryContext old;

	if (!found)
	{
		entry->context = NULL;
		entry->generation = 0;
	}
	if (entry->generation == generation)
		return entry->gone ? NULL : &entry->route;

	if (entry->context == NULL)
		entry->context = AllocSetContextCreate(TopMemoryContext, "otp route", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(entry->context);
	entry->gone = true;
	memset(&entry->route, 0, sizeof(Route));
	old = MemoryContextSwitchTo(entry->context);
	entry->gone = !route_load(workspace_id, &entry->route);
	MemoryContextSwitchTo(old);

	/* Last, so that an error has it read again */
	entry->generation = generation;
	return entry->gone ? NULL : &entry->route;
}

/* Give a known route */
const Route *
account_known_route(int32 workspace_id)
{
	RouteEntry *entry = hash_search(routes, &workspace_id, HASH_FIND, NULL);

	return entry != NULL && !entry->gone ? &entry->route : NULL;
}

/* Find an account */
Account *
account_get(int32 account_id, TimestampTz now)
{
	bool		found;
	Account    *a = hash_search(accounts, &account_id, HASH_ENTER, &found);
	RouteAccount row;
	bool		changed;

	if (!found)
	{
		memset((char *) a + sizeof(int32), 0, sizeof(Account) - sizeof(int32));
		a->provider.version = -1;
		a->breaker.account_id = account_id;
	}
	if (a->problem_passes && now >= a->check_again_at)
	{
		a->generation = 0;
		a->provider.version = -1;
	}
	if (a->generation == generation)
		return a->gone ? NULL : a;

	a->gone = !route_load_account(account_id, a->provider.version, &row, &changed);
	if (a->gone)
		a->provider.version = -1;
	else if (changed)
	{
		int64		before = a->provider.version;

		take_account(a, &row);
		a->check_again_at = TimestampTzPlusMilliseconds(now, PROBLEM_LOOK_MS);
		if (before >= 0)
		{
			a->gap_us = 0;
			a->hold_until = 0;
			a->overloads = 0;
			close_breaker(a, now);
		}
	}
	a->generation = generation;
	return a->gone ? NULL : a;
}

/* Give a known account */
Account *
account_known(int32 account_id)
{
	return hash_search(accounts, &account_id, HASH_FIND, NULL);
}

/* ---- breaker and pace ---- */

/* Tell whether something is in trouble */
bool
accounts_troubled(void)
{
	return troubled > 0;
}

/* Is the breaker in the way? */
bool
account_blocked(const Account *a, TimestampTz now, TimestampTz *until)
{
	if (a->problem != NULL)
	{
		*until = a->problem_passes && a->check_again_at > now ? a->check_again_at :
			TimestampTzPlusMilliseconds(now, PROBLEM_WAIT_MS);
		return true;
	}
	switch (a->breaker.state)
	{
		case BREAKER_OPEN:
			if (now >= a->breaker.retry_at)
				return false;
			*until = a->breaker.retry_at;
			return true;
		case BREAKER_HALF_OPEN:
			if (!a->probing)
				return false;
			*until = TimestampTzPlusMilliseconds(now, PROBE_LOOK_MS);
			return true;
		case BREAKER_CLOSED:
			break;
	}
	return false;
}

/* How many of the account's share are left? */
static int
free_places(const Account *a)
{
	int			available = Max(sender.max_in_flight - all_admitted, 0);

	/* Each one more takes one from what is free, too */
	return Max((SHARE_FACTOR * available - a->admitted + SHARE_FACTOR) / (SHARE_FACTOR + 1), 0);
}

/* How many can be let through? */
int
account_places(const Account *a, TimestampTz now)
{
	TimestampTz until;

	return account_blocked(a, now, &until) ? PG_INT32_MAX : free_places(a);
}

/* Let a message through, or not */
Admission
account_admit(Account *a, Owed *o, TimestampTz now, TimestampTz latest, TimestampTz *until)
{
	if (account_blocked(a, now, until))
		return ADMIT_UNAVAILABLE;

	if (a->breaker.state != BREAKER_CLOSED)
	{
		a->breaker.state = BREAKER_HALF_OPEN;
		a->probing = true;
		o->probe = true;
		roster_breaker_set(&a->breaker);
	}
	else
	{
		if (now < a->hold_until)
		{
			*until = a->hold_until;
			o->reserved = false;
			return ADMIT_WAIT;
		}
		if (free_places(a) == 0)
			return ADMIT_CROWDED;

		/*
		 * Throttled: every message gets a time of its own, if that is any
		 * good
		 */
		if (a->gap_us > 0 && !o->reserved)
		{
			*until = Max(now, a->next_start);
			if (*until <= latest)
			{
				a->next_start = *until + a->gap_us;
				o->reserved = true;
			}
			if (*until > now)
				return ADMIT_WAIT;
		}
	}
	o->reserved = false;
	o->admitted = true;
	a->admitted++;
	all_admitted++;
	return ADMIT_START;
}

/* A message is not in flight any more */
static void
take_out(Account *a, Owed *o)
{
	o->admitted = false;
	o->probe = false;
	a->admitted--;
	all_admitted--;
}

/* Take back an admission */
void
account_dismiss(Owed *o, TimestampTz now)
{
	Account    *a = account_known(o->account_id);
	bool		probe = o->probe;

	if (!o->admitted)
		return;
	take_out(a, o);

	/* The trial did not take place */
	if (probe && a->breaker.state == BREAKER_HALF_OPEN)
	{
		a->probing = false;
		a->breaker.state = BREAKER_OPEN;
		a->breaker.retry_at = now;
		roster_breaker_set(&a->breaker);
	}
}

/* Open a breaker, or leave it open for longer */
static void
open_breaker(Account *a, bool refused, int min_delay_ms, TimestampTz now)
{
	long		first = refused ? REFUSED_DELAY_MS : OUTAGE_DELAY_MS;
	long		most = refused ? REFUSED_DELAY_MAX_MS : OUTAGE_DELAY_MAX_MS;
	long		delay;

	if (a->breaker.state == BREAKER_CLOSED)
	{
		troubled++;
		a->breaker.opened_at = now;
		a->delay_ms = first;
		ereport(LOG,
				(errmsg("provider account %d is not used for the time being: %s",
						a->account_id, a->breaker.last_error)));
	}
	else
		a->delay_ms = Min(most, Max(first, a->delay_ms * 2));
	a->breaker.state = BREAKER_OPEN;
	a->breaker.account_refused = refused;
	a->probing = false;

	/* Who says when to come back is listened to, but not for ever */
	delay = Max(a->delay_ms, Min(min_delay_ms, most));

	/* Some jitter, lest all senders come back in step */
	a->breaker.retry_at = now + delay * INT64CONST(1000) +
		(int64) (compat_random() * delay * 100);
}

/* Slow an overloaded account down */
static void
slow_down(Account *a, const Judgement *j, TimestampTz started_at, TimestampTz now)
{
	long		hold = OVERLOAD_HOLD_MS;

	/* One refusal may come in a hundred answers: those were under way already */
	if (started_at <= a->overloaded_at)
		return;
	a->overloaded_at = now;
	for (int i = 0; i < a->overloads && hold < OVERLOAD_HOLD_MAX_MS; i++)
		hold *= 2;
	a->overloads++;
	hold = Max(Min(hold, OVERLOAD_HOLD_MAX_MS), j->min_delay_ms);
	a->hold_until = TimestampTzPlusMilliseconds(now, hold);
	a->gap_us = a->gap_us == 0 ? GAP_FIRST_US : Min(a->gap_us * 2, GAP_MAX_US);
	a->next_start = a->hold_until;
}

/* Note what the account's trouble is */
static void
note_trouble(Account *a, const Judgement *j, TimestampTz now)
{
	a->breaker.failures++;
	a->breaker.http_status = j->http_status;
	a->breaker.provider_code = j->provider_code;
	a->breaker.last_error_at = now;
	strlcpy(a->breaker.last_error, j->detail, ROSTER_ERROR_SIZE);

	/* cut within a character? */
	for (int i = (int) strlen(a->breaker.last_error); i-- > 0 && (unsigned char) a->breaker.last_error[i] >= 0x80;)
		a->breaker.last_error[i] = '\0';
}

/* Take in a receipt */
void
account_receipt_judged(Account *a, const Judgement *j, TimestampTz now)
{
	/*
	 * A receipt is about what was sent a while ago: it opens a breaker, and
	 * changes nothing about one that is open. Outages show in answers.
	 */
	if (j->verdict == VERDICT_ACCOUNT && !j->sender_refused && a->breaker.state == BREAKER_CLOSED)
	{
		note_trouble(a, j, now);
		open_breaker(a, true, j->min_delay_ms, now);
		roster_breaker_set(&a->breaker);
	}
	else if (j->overloaded)
		slow_down(a, j, now, now);
}

/* Take in a restriction, or its end */
void
account_restrict(Account *a, const char *why, TimestampTz now)
{
	Judgement	j;

	if (why == NULL)
	{
		close_breaker(a, now);
		return;
	}
	memset(&j, 0, sizeof(j));
	strlcpy(j.detail, why, sizeof(j.detail));
	note_trouble(a, &j, now);
	open_breaker(a, true, REFUSED_DELAY_MAX_MS, now);
	roster_breaker_set(&a->breaker);
}

/* Take in an answer */
void
account_judged(Account *a, Owed *o, const Judgement *j, TimestampTz now)
{
	bool		refused = j->verdict == VERDICT_ACCOUNT;
	bool		probe = o->probe;

	take_out(a, o);
	if (refused || j->down)
	{
		note_trouble(a, j, now);

		/* Late news from before it opened says nothing new */
		if (probe || (a->breaker.state == BREAKER_CLOSED &&
					  (refused || a->breaker.failures >= BREAKER_FAILURES)))
			open_breaker(a, refused, j->min_delay_ms, now);
		roster_breaker_set(&a->breaker);
	}
	else if (probe || (a->breaker.state == BREAKER_CLOSED && a->breaker.failures > 0))
		close_breaker(a, now);

	if (j->overloaded)
		slow_down(a, j, o->started_at, now);
	else if (j->verdict == VERDICT_ACCEPTED)
	{
		a->overloads = 0;
		if (a->gap_us > 0)
		{
			a->gap_us -= a->gap_us / 64 + 1;
			if (a->gap_us < GAP_LEAST_US)
				a->gap_us = 0;
		}
	}
}
