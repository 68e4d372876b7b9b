/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  otp_verify: check a code.
 *
 * The order is fixed: refuse recovery and read-only transactions; find and
 * lock the row; count the guess where no rollback reaches (ledger.c); compare;
 * write. What can raise comes before the count, so an error costs no attempt;
 * nothing can raise between the count and the comparison; and what is raised
 * after it cannot take a wrong guess back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/code.h"
#include "base/keyring.h"
#include "base/phone.h"
#include "store/failures.h"
#include "store/key.h"
#include "store/queue.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_verify);

/* Longest guess that is hashed; a code has 8 digits at most */
#define MAX_GUESS 64

/* What otp_verify answers */
typedef struct Answer
{
	OtpError	error;
	int			attempts_remaining; /* -1: not told */
	int			retry_after;	/* seconds, -1: not told */
	TimestampTz verified_at;
	const char *phone;
	const char *channel;
} Answer;

/* Was it made by the transaction that now guesses? */
static bool
is_own(const Verification *v)
{
	FullTransactionId xid = GetTopFullTransactionIdIfAny();

	/*
	 * A code that cannot have left cannot be right: else send, guess and roll
	 * back would go on for ever. A test number's code never leaves at all.
	 */
	return v->test_outcome == NULL && FullTransactionIdIsValid(xid) &&
		U64FromFullTransactionId(xid) == v->created_xid;
}

/* Hash a guess that is compared with nothing */
static void
hash_for_nothing(const pg_uuid_t *id, const char *context, const char *guess)
{
	static const uint8 nothing[HASH_LENGTH];
	uint8		hash[HASH_LENGTH];

	/* An unknown id must take as long as a known one */
	code_hash(id, context, guess, keyring_current(), hash);
	(void) code_equal(hash, nothing, HASH_LENGTH);
}

/* Check a guess against a locked row */
static void
check_guess(Verification *v, const Workspace *w, uint32 phone_settles, const char *context,
			const char *guess, TimestampTz now, Answer *answer)
{
	LedgerGuess ledger;
	LedgerAnswer taken;
	uint8		hash[HASH_LENGTH];
	char		buffer[PHONE_SIZE];
	int			attempts = verb_attempts(v);
	int			retry_after = -1;
	bool		read_again = false;
	bool		right;

	/* Hashed before the count: the key may be missing, memory may run out */
	key_require(v->key_id);
	code_hash(&v->id, context, guess, v->key_id, hash);

	answer->error = verb_end_of_life(v, attempts, now);
	if (answer->error == OTP_RATE_LIMIT_EXCEEDED)
		answer->attempts_remaining = 0;
	if (answer->error != OTP_OK)
		return;

	/* Count */
	memset(&ledger, 0, sizeof(ledger));
	ledger.workspace_id = v->workspace_id;
	ledger.id = v->id;
	ledger.phone = phone_fold(v->phone, buffer);
	ledger.created_xid = XidFromFullTransactionId(FullTransactionIdFromU64(v->created_xid));
	ledger.expires_at = v->expires_at;
	ledger.attempts = v->attempts;
	ledger.max_attempts = v->max_attempts;
	ledger.committed = v->failures;
	if (v->test_outcome == NULL)
		failures_policy(w, &ledger.policy);
	ledger.phone_settles = phone_settles;
	ledger.now = now;
	for (;;)
	{
		taken = ledger_take(&ledger, &attempts, &retry_after);

		/*
		 * A right guess may have committed, and another one been compared,
		 * while this one waited for its row: refuse nobody for what is over.
		 */
		if (taken != LEDGER_STALE && (taken != LEDGER_COOLING || read_again))
			break;
		read_again = true;
		ledger.phone_settles = ledger_phone_settles();
		verification_phone_failures(v);
		ledger.committed = v->failures;
	}
	switch (taken)
	{
		case LEDGER_USED_UP:
			answer->error = OTP_RATE_LIMIT_EXCEEDED;
			answer->attempts_remaining = 0;
			return;
		case LEDGER_COOLING:
			answer->error = OTP_RATE_LIMIT_EXCEEDED;
			answer->attempts_remaining = v->max_attempts - attempts;
			answer->retry_after = retry_after;
			return;
		case LEDGER_FULL:
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("too many wrong codes are being counted"),
					 errhint("Raise otp.ledger_size, and look in otp.health whether the sender runs that writes them back."),
					 errhidestmt(true),
					 errhidecontext(true)));
		case LEDGER_STALE:
		case LEDGER_TAKEN:
			break;
	}

	/* Compare */
	right = code_equal(hash, v->code_hash, HASH_LENGTH);
	if (right)
		ledger_right(&ledger);
	else
		ledger_wrong(&ledger);

	/* Write */
	if (right)
	{
		verification_set_verified(v, attempts, now);
		if (ledger.in_row > 0)
			failures_forgive(v->workspace_id, ledger.phone, 0, ledger.phone_total);
		if (w != NULL && v->test_outcome == NULL)
			guard_note_verified(w, v);

		/* The sender forgets the code, and tells of this if we commit */
		if (v->test_outcome == NULL)
		{
			queue_row(OUTBOX_VERIFIED, &v->id, v->workspace_id, v->slot, OUTBOX_NUMBER_OTHER,
					  now + OUTBOX_PATIENCE_US, NULL);
			wake_at_commit();
		}
		answer->error = OTP_OK;
		answer->verified_at = now;
		answer->attempts_remaining = v->max_attempts - attempts;
	}
	else
	{
		verification_set_attempts(v, attempts, now);
		answer->error = OTP_INVALID_CODE;
		answer->attempts_remaining = v->max_attempts - attempts;
	}
}

/* Check a code */
Datum
otp_verify(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Verification v;
	Answer		answer = {OTP_NOT_FOUND, -1, -1, 0, NULL, NULL};
	pg_uuid_t	id = {{0}};
	Datum		workspaces;
	uint32		phone_settles;
	char	   *id_text;
	char	   *guess;
	char	   *context;
	char	   *phone;
	bool		found;
	Datum		values[8];
	bool		nulls[8] = {false};

	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"otp_id\" is NULL", "Give the otp_id that otp_send returned.");
	if (PG_ARGISNULL(1))
		error_invalid_argument("argument \"code\" is NULL", "Give the code that the user typed.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));
	guess = VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(1)) <= MAX_GUESS
		? text_to_cstring(PG_GETARG_TEXT_PP(1)) : pstrdup("");
	context = verb_text(fcinfo, 2, "context", MAX_CONTEXT);
	phone = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));

	verb_begin(&scope, "otp_verify()", VERB_WRITES);
	workspaces = workspace_granted(scope.caller, false);

	/* An id that is none is looked up, too: it must take as long */
	found = ulid_parse(id_text, strlen(id_text), &id);
	phone_settles = ledger_phone_settles();
	found = verification_lock(workspaces, &id, &v) && found;
	if (found && (is_own(&v) || (phone != NULL && strcmp(phone, v.phone) != 0)))
		found = false;

	if (found)
	{
		check_guess(&v, workspace_by_id(v.workspace_id), phone_settles, context, guess, GetCurrentTimestamp(), &answer);
		answer.phone = v.phone;
		answer.channel = v.last_channel != NULL ? v.last_channel : v.channel;
	}
	else
		hash_for_nothing(&id, context, guess);
	explicit_bzero(guess, strlen(guess));

	verb_end(&scope);

	values[0] = BoolGetDatum(answer.error == OTP_OK);
	values[1] = CStringGetTextDatum(id_text);
	if (answer.error == OTP_OK)
	{
		values[2] = CStringGetTextDatum(answer.phone);
		values[3] = TimestampTzGetDatum(answer.verified_at);
		values[4] = CStringGetTextDatum(answer.channel);
		nulls[5] = true;
	}
	else
	{
		nulls[2] = nulls[3] = nulls[4] = true;
		values[5] = CStringGetTextDatum(error_code(answer.error));
	}
	values[6] = Int32GetDatum(answer.attempts_remaining);
	nulls[6] = answer.attempts_remaining < 0;
	values[7] = Int32GetDatum(answer.retry_after);
	nulls[7] = answer.retry_after < 0;
	return verb_row(fcinfo, values, nulls);
}
