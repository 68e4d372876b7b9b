/*-------------------------------------------------------------------------
 *
 * template.c
 *	  The rows of otp.templates: what may be sent, and what Meta says of it.
 *
 * Every send looks a template up, and so does every message that is made of
 * one: a session keeps what it has read, until the trigger on the table tells
 * of a change, see workspace.c.
 *
 * The sender writes what Meta says. Rows are policy, which people change by
 * UPDATE in transactions of any length, and the sender must not wait for
 * them: it locks what it is about to write first, and puts it off when a row
 * is not to be had.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "store/outbox.h"
#include "store/plan.h"
#include "store/template.h"

/* Templates kept per session; more than that start from nothing */
#define CACHE_SIZE 4096
#define CACHE_BUCKETS 256

/* A list read just after a creation need not have it yet. */
#define LIST_LAG "interval '1 min'"

/* Longest words taken from a webhook, in bytes */
#define MAX_NAME 512
#define MAX_WORD 64
#define MAX_REASON 255

/* An approved stand-in for a template, whose text tells other minutes */
typedef struct Variant
{
	char	   *name;
	int			minutes;
} Variant;

/* A template as it is sent */
typedef struct Entry
{
	struct Entry *next;			/* of its bucket */
	uint32		hash;
	int32		workspace_id;
	char	   *name;
	char	   *language;
	TemplateState state;
	int			minutes;		/* 0: its text says nothing */
	int			nvariants;
	Variant    *variants;		/* the shortest first */
} Entry;

/* What this session has read; all of it lives in cache_context */
static MemoryContext cache_context = NULL;
static bool cache_stale = true;
static Entry *buckets[CACHE_BUCKETS];
static int	nentries = 0;

/* ---- helpers ---- */

/* Give a column of the first row as text, copied; NULL is NULL */
static char *
column_text(int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value != NULL ? MemoryContextStrdup(context, value) : NULL;
}

/* Give a boolean column of the first row */
static bool
column_bool(int column)
{
	bool		isnull;

	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull));
}

/* Make a text of a string that may be NULL */
static Datum
text_or_null(const char *value, char *null)
{
	*null = value == NULL ? 'n' : ' ';
	return value == NULL ? (Datum) 0 : CStringGetTextDatum(value);
}

/* ---- the cache ---- */

/* Take in a change of the configuration */
static void
note_change(Datum arg, Oid relid)
{
	cache_stale = true;
}

/* Start from nothing after a change, or when there is too much */
static void
refresh_cache(void)
{
	static bool callback_registered = false;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(note_change, (Datum) 0);
		callback_registered = true;
	}
	if (!cache_stale && nentries < CACHE_SIZE)
		return;

	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "otp templates",
											  ALLOCSET_DEFAULT_SIZES);
	memset(buckets, 0, sizeof(buckets));
	nentries = 0;
	MemoryContextReset(cache_context);

	/* Before the reading, so that a change during it is not missed */
	cache_stale = false;
}

/* Read a status as what it means for a send */
static TemplateState
read_state(const char *status)
{
	if (strcmp(status, "approved") == 0 || strcmp(status, "unchecked") == 0)
		return TEMPLATE_USABLE;
	return strcmp(status, "missing") == 0 ? TEMPLATE_MISSING : TEMPLATE_NOT_APPROVED;
}

/* Read a template and its variants into an entry */
static void
load_entry(Entry *entry)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	MemoryContext old = CurrentMemoryContext;

	plan_keep(&plan,
			  "SELECT t.name, t.status, coalesce(t.code_expiration_minutes, 0)"
			  " FROM otp.templates t WHERE t.workspace_id = $1 AND t.language = $3"
			  " AND (t.name = $2 OR (t.variant_of = $2 AND t.status = 'approved' AND t.code_expiration_minutes > 0))"
			  " ORDER BY t.code_expiration_minutes, t.name",
			  lengthof(types), types);
	values[0] = Int32GetDatum(entry->workspace_id);
	values[1] = CStringGetTextDatum(entry->name);
	values[2] = CStringGetTextDatum(entry->language);
	plan_run_latest(plan, values, NULL, 0);

	MemoryContextSwitchTo(cache_context);
	entry->state = TEMPLATE_ABSENT;
	entry->variants = palloc((SPI_processed + 1) * sizeof(Variant));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		char	   *name = TextDatumGetCString(SPI_getbinval(tuple, desc, 1, &isnull));
		int			minutes = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));

		if (strcmp(name, entry->name) == 0)
		{
			entry->state = read_state(TextDatumGetCString(SPI_getbinval(tuple, desc, 2, &isnull)));
			entry->minutes = minutes;
		}
		else
		{
			entry->variants[entry->nvariants].name = name;
			entry->variants[entry->nvariants++].minutes = minutes;
		}
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(old);
}

/* Find a template */
static const Entry *
find_entry(int32 workspace_id, const char *name, const char *language)
{
	uint32		hash = hash_combine(hash_combine(murmurhash32((uint32) workspace_id), string_hash(name, MAX_NAME + 1)),
									string_hash(language, MAX_WORD));
	Entry	   *entry;

	refresh_cache();
	for (entry = buckets[hash % CACHE_BUCKETS]; entry != NULL; entry = entry->next)
	{
		if (entry->hash == hash && entry->workspace_id == workspace_id &&
			strcmp(entry->name, name) == 0 && strcmp(entry->language, language) == 0)
			return entry;
	}

	entry = MemoryContextAllocZero(cache_context, sizeof(Entry));
	entry->hash = hash;
	entry->workspace_id = workspace_id;
	entry->name = MemoryContextStrdup(cache_context, name);
	entry->language = MemoryContextStrdup(cache_context, language);
	load_entry(entry);

	/* Last: an error on the way leaves nothing half read */
	entry->next = buckets[hash % CACHE_BUCKETS];
	buckets[hash % CACHE_BUCKETS] = entry;
	nentries++;
	return entry;
}

/* Look a template up */
TemplateState
template_state(int32 workspace_id, const char *name, const char *language)
{
	return find_entry(workspace_id, name, language)->state;
}

/* Choose the template whose text fits best */
const char *
template_variant(int32 workspace_id, const char *name, const char *language,
				 int expires_in, int *minutes)
{
	const Entry *entry = find_entry(workspace_id, name, language);
	Variant		best = {entry->name, entry->minutes};
	int			best_distance = abs(entry->minutes * 60 - expires_in);

	if (entry->minutes != 0 && entry->minutes != TEMPLATE_MINUTES(expires_in))
	{
		for (int i = 0; i < entry->nvariants; i++)
		{
			const Variant *v = &entry->variants[i];
			int			distance = abs(v->minutes * 60 - expires_in);

			/*
			 * Of two as near, the shorter one: it promises too little rather
			 * than too much
			 */
			if (distance < best_distance || (distance == best_distance && v->minutes < best.minutes))
			{
				best = *v;
				best_distance = distance;
			}
		}
	}
	if (minutes != NULL)
		*minutes = best.minutes;
	return best.name;
}

/* ---- requests ---- */

/* Find the account of a workspace's templates */
int32
template_account(int32 workspace_id, bool *has_waba)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	int32		account_id = 0;

	/* Whether or not the module is on: templates are made before it is used */
	plan_keep(&plan,
			  "SELECT a.account_id, coalesce(a.settings ->> 'waba_id', '') <> '' FROM otp.workspaces w"
			  " JOIN otp.provider_accounts a ON a.account_id = w.whatsapp_account"
			  " WHERE w.workspace_id = $1 AND a.provider = 'meta' AND coalesce(a.exclusive_to, $1) = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run(plan, values, NULL, NULL, false, 1);
	*has_waba = false;
	if (SPI_processed > 0)
	{
		bool		isnull;

		account_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		*has_waba = column_bool(2);
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return account_id;
}

/* Lock a row */
char *
template_lock(int32 workspace_id, const char *name, const char *language, bool *is_variant)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;
	char	   *status = NULL;

	plan_keep(&plan,
			  "SELECT t.status, t.variant_of IS NOT NULL FROM otp.templates t"
			  " WHERE t.workspace_id = $1 AND t.name = $2 AND t.language = $3 FOR UPDATE",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(language);
	plan_run(plan, values, NULL, NULL, false, 1);
	*is_variant = false;
	if (SPI_processed > 0)
	{
		status = column_text(1, context);
		*is_variant = column_bool(2);
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return status;
}

/* Note a request */
void
template_request(int32 workspace_id, const char *name, const char *language,
				 int minutes, const char *variant_of)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[5];
	char		nulls[] = "     ";
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan,
			  "INSERT INTO otp.templates (workspace_id, name, language, status, code_expiration_minutes, variant_of,"
			  " requested_at) VALUES ($1, $2, $3, 'requested', nullif($4, 0), $5, pg_catalog.clock_timestamp())"
			  " ON CONFLICT (workspace_id, name, language) DO UPDATE SET status = excluded.status,"
			  " code_expiration_minutes = excluded.code_expiration_minutes, variant_of = excluded.variant_of,"
			  " requested_at = excluded.requested_at, updated_at = excluded.updated_at, seeded = false,"
			  " template_id = NULL, category = NULL, reason = NULL, checked_at = NULL",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(language);
	values[3] = Int32GetDatum(minutes);
	values[4] = text_or_null(variant_of, &nulls[4]);
	plan_run(plan, values, nulls, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/* ---- news ---- */

/* The workspaces that news of an account are for */
#define WORKSPACES "otp.workspaces w WHERE (w.whatsapp_account = $1 OR w.workspace_id = $2)"

/* The rows of these workspaces: all, those of some names, those of one language */
#define ROWS "otp.templates t, " WORKSPACES " AND t.workspace_id = w.workspace_id" \
	" AND ($3 IS NULL OR t.name = ANY ($3)) AND ($4 IS NULL OR replace(t.language, '-', '_') = $4)"

/*
 * Lock the rows that are about to be written; names is a text[], or 0 for
 * all. False when one is not to be had now.
 */
static bool
lock_rows(int32 account_id, int32 workspace_id, Datum names, const char *language)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TEXTARRAYOID, TEXTOID};
	Datum		values[4];
	char		nulls[] = "    ";
	bool		locked;

	plan_keep(&plan,
			  "WITH locked AS (SELECT 1 FROM " ROWS " FOR UPDATE OF t SKIP LOCKED)"
			  " SELECT (SELECT count(*) FROM locked) = (SELECT count(*) FROM " ROWS ")",
			  lengthof(types), types);
	values[0] = Int32GetDatum(account_id);
	values[1] = Int32GetDatum(workspace_id);
	values[2] = names;
	if (names == (Datum) 0)
		nulls[2] = 'n';
	values[3] = text_or_null(language, &nulls[3]);
	plan_run(plan, values, nulls, NULL, false, 1);
	locked = column_bool(1);
	SPI_freetuptable(SPI_tuptable);
	return locked;
}

/* The same for one template */
static bool
lock_row(int32 account_id, int32 workspace_id, const char *name, const char *language)
{
	Datum		names = CStringGetTextDatum(name);

	return lock_rows(account_id, workspace_id, store_array(&names, NULL, 1, TEXTOID), language);
}

/* Take news in */
bool
template_note(int32 account_id, int32 workspace_id, const TemplateNews *news, int n,
			  TimestampTz since, bool add)
{
	static SPIPlanPtr update_plan = NULL;
	static SPIPlanPtr insert_plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, TIMESTAMPTZOID};
	Datum		values[lengthof(types)];
	Datum	   *columns[7];
	bool	   *nulls[7];
	MemoryContext context = CurrentMemoryContext;
	bool		locked;

	if (n == 0)
		return true;

#define NEWS "unnest($3, $4, $5, $6, $7, $8, $9) k (name, language, status, template_id, category, reason, minutes)"
	plan_keep(&update_plan,
			  "UPDATE otp.templates t SET"
			  " status = CASE WHEN t.checked_at > $10 THEN t.status ELSE k.status END,"
			  " reason = CASE WHEN t.checked_at > $10 THEN t.reason ELSE k.reason END,"
			  " template_id = coalesce(k.template_id, t.template_id), category = coalesce(k.category, t.category),"
			  " code_expiration_minutes = CASE WHEN k.minutes < 0 THEN t.code_expiration_minutes"
			  " ELSE nullif(k.minutes, 0) END,"
			  " updated_at = CASE WHEN t.checked_at > $10 OR t.status = k.status THEN t.updated_at"
			  " ELSE pg_catalog.clock_timestamp() END, checked_at = pg_catalog.clock_timestamp()"
			  " FROM " NEWS ", " WORKSPACES
			  " AND t.workspace_id = w.workspace_id AND t.name = k.name AND t.language = k.language",
			  lengthof(types), types);
	plan_keep(&insert_plan,
			  "INSERT INTO otp.templates (workspace_id, name, language, status, template_id, category, reason,"
			  " code_expiration_minutes, checked_at)"
			  " SELECT w.workspace_id, k.name, k.language, k.status, k.template_id, k.category, k.reason,"
			  " CASE WHEN k.minutes > 0 THEN k.minutes END, pg_catalog.clock_timestamp() FROM " NEWS ", otp.workspaces w"
			  " WHERE k.category = 'authentication' AND w.workspace_id = $2"
			  " AND NOT EXISTS (SELECT 1 FROM otp.templates t WHERE t.workspace_id = w.workspace_id"
			  " AND t.name = k.name AND t.language = k.language)"
			  " ON CONFLICT DO NOTHING",
			  lengthof(types), types);
	MemoryContextSwitchTo(context);

	for (int c = 0; c < lengthof(columns); c++)
	{
		columns[c] = palloc0(n * sizeof(Datum));
		nulls[c] = palloc0(n * sizeof(bool));
	}
	for (int i = 0; i < n; i++)
	{
		const char *words[] = {news[i].name, news[i].language, news[i].status, news[i].template_id,
		news[i].category, news[i].reason};

		for (int c = 0; c < lengthof(words); c++)
		{
			nulls[c][i] = words[c] == NULL;
			if (words[c] != NULL)
				columns[c][i] = CStringGetTextDatum(words[c]);
		}
		columns[6][i] = Int32GetDatum(news[i].minutes);
	}
	values[0] = Int32GetDatum(account_id);
	values[1] = Int32GetDatum(workspace_id);
	for (int c = 0; c < lengthof(columns); c++)
		values[2 + c] = store_array(columns[c], nulls[c], n, c < 6 ? TEXTOID : INT4OID);
	values[9] = TimestampTzGetDatum(since);
	locked = lock_rows(account_id, workspace_id, values[2], NULL);
	if (locked)
		plan_run(update_plan, values, NULL, NULL, false, 0);
	if (locked && add)
		plan_run(insert_plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return locked;
}

/* Mark what is not at Meta */
bool
template_note_missing(int32 account_id, int32 workspace_id, TimestampTz since)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;
	bool		locked = lock_rows(account_id, workspace_id, (Datum) 0, NULL);

	/*
	 * Not those that are about to be made, or could not be; nor what was
	 * written while the list was read.
	 */
	plan_keep(&plan,
			  "UPDATE otp.templates t SET status = 'missing', reason = NULL,"
			  " checked_at = pg_catalog.clock_timestamp(),"
			  " updated_at = CASE WHEN t.status = 'missing' THEN t.updated_at ELSE pg_catalog.clock_timestamp() END"
			  " FROM " WORKSPACES " AND t.workspace_id = w.workspace_id AND t.status NOT IN ('requested', 'error')"
			  " AND (t.checked_at IS NULL OR t.checked_at < $3) AND t.updated_at < $3"
			  " AND (t.requested_at IS NULL OR t.requested_at < $3 - " LIST_LAG ")",
			  lengthof(types), types);
	values[0] = Int32GetDatum(account_id);
	values[1] = Int32GetDatum(workspace_id);
	values[2] = TimestampTzGetDatum(since);
	if (locked)
		plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return locked;
}

/* Note why a template could not be made */
bool
template_note_trouble(int32 workspace_id, const char *name, const char *language,
					  const char *reason, bool final)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, TEXTOID, BOOLOID};
	Datum		values[5];
	MemoryContext context = CurrentMemoryContext;
	bool		locked = lock_row(0, workspace_id, name, language);

	plan_keep(&plan,
			  "UPDATE otp.templates t SET reason = $4, updated_at = pg_catalog.clock_timestamp(),"
			  " status = CASE WHEN $5 THEN 'error' ELSE t.status END"
			  " WHERE t.workspace_id = $1 AND t.name = $2 AND t.language = $3 AND t.status = 'requested'",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(language);
	values[3] = CStringGetTextDatum(reason);
	values[4] = BoolGetDatum(final);
	if (locked)
		plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return locked;
}

/* ---- webhooks ---- */

/* Copy a word in lower case, "-" as "_"; NULL when it is none */
static char *
take_word(const char *word, int max)
{
	char	   *copy;

	if (word == NULL || word[0] == '\0' || strlen(word) > (size_t) max)
		return NULL;
	copy = pstrdup(word);
	for (char *p = copy; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~')
			return NULL;
		*p = *p == '-' ? '_' : (char) pg_tolower((unsigned char) *p);
	}
	return copy;
}

/* Copy words, as far as they are ASCII and fit; NULL when there are none */
static char *
take_reason(const char *words)
{
	char	   *copy;

	if (words == NULL || words[0] == '\0' || pg_strcasecmp(words, "none") == 0)
		return NULL;
	copy = pnstrdup(words, MAX_REASON);
	for (char *p = copy; *p != '\0'; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return copy;
}

/* Take in a status */
bool
template_note_told(int32 account_id, const char *name, const char *language,
				   const char *status, const char *reason, const char *template_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[7];
	char		nulls[] = "       ";
	MemoryContext context = CurrentMemoryContext;
	char	   *word = take_word(status, MAX_WORD);
	char	   *spoken = take_word(language, MAX_WORD);

	/* Nothing that we could know of */
	if (word == NULL || spoken == NULL || take_word(name, MAX_NAME) == NULL)
		return true;

	/* Languages have their own case */
	for (int i = 0; spoken[i] != '\0'; i++)
		spoken[i] = language[i] == '-' ? '_' : language[i];
	if (!lock_row(account_id, 0, name, spoken))
	{
		MemoryContextSwitchTo(context);
		return false;
	}

	plan_keep(&plan,
			  "UPDATE otp.templates t SET status = $5, reason = $6,"
			  " template_id = coalesce($7, t.template_id), checked_at = pg_catalog.clock_timestamp(),"
			  " updated_at = CASE WHEN t.status = $5 THEN t.updated_at ELSE pg_catalog.clock_timestamp() END"
			  " FROM " WORKSPACES " AND t.workspace_id = w.workspace_id AND t.name = $3"
			  " AND replace(t.language, '-', '_') = $4",
			  lengthof(types), types);
	values[0] = Int32GetDatum(account_id);
	values[1] = Int32GetDatum(0);
	values[2] = CStringGetTextDatum(name);
	values[3] = CStringGetTextDatum(spoken);
	values[4] = CStringGetTextDatum(strcmp(word, "deleted") == 0 ? "missing" : word);
	values[5] = text_or_null(take_reason(reason), &nulls[5]);
	values[6] = text_or_null(take_word(template_id, MAX_WORD), &nulls[6]);
	plan_run(plan, values, nulls, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return true;
}

/* Take in a status, now or later */
void
template_note_status(int32 account_id, const char *name, const char *language,
					 const char *status, const char *reason, const char *template_id)
{
	MemoryContext context = CurrentMemoryContext;
	StringInfoData payload;
	char	   *words = take_reason(reason);

	if (template_note_told(account_id, name, language, status, reason, template_id))
		return;

	initStringInfo(&payload);
	appendStringInfo(&payload, "{\"do\":\"note_template\",\"account\":%d,\"name\":", account_id);
	json_quote(&payload, name);
	appendStringInfoString(&payload, ",\"language\":");
	json_quote(&payload, language);
	appendStringInfoString(&payload, ",\"status\":");
	json_quote(&payload, status);
	appendStringInfoString(&payload, ",\"reason\":");
	json_quote(&payload, words != NULL ? words : "");
	appendStringInfoString(&payload, ",\"template_id\":");
	json_quote(&payload, template_id != NULL ? template_id : "");
	appendStringInfoChar(&payload, '}');
	queue_payload(OUTBOX_JOB, 0, payload.data);
	MemoryContextSwitchTo(context);
}
