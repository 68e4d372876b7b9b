/*-------------------------------------------------------------------------
 *
 * receive.c
 *	  otp.receive_meta, otp.receive_twilio and Meta's handshake: take what the
 *	  providers tell.
 *
 * Anybody can send anything to the address that a provider calls, so nothing
 * is read before its signature has proved whose it is. What is of use then
 * waits in the outbox for the sender, who alone decides what follows: nobody
 * here waits for a lock, and a receipt may come before the sender has noted
 * the answer to the request that caused it.
 *
 * One app of Meta's can serve several accounts, and calls one address for all:
 * each gets what is its, if its own secret is the one that has signed.
 *
 * A refusal is counted in shared memory, because it rolls back. It is the
 * same, and as much work, for an account that does not exist.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/builtins.h"

#include "base/receipt_count.h"
#include "base/signature.h"
#include "channel/receipt.h"
#include "store/account.h"
#include "store/queue.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_receive_meta);
EXPORTED_FUNCTION(otp_receive_twilio);
EXPORTED_FUNCTION(otp_receive_meta_handshake);

/* Meta's bodies have up to 3 MB, and some slack */
#define MAX_META_BODY (4 * 1024 * 1024)

/* Twilio's have less than a kilobyte */
#define MAX_TWILIO_BODY (256 * 1024)
#define MAX_URL 8192

/* No right signature or token is longer; of a challenge, ten digits are usual */
#define MAX_SIGNATURE 4096
#define MAX_CHALLENGE 128

/* Signs in place of a secret that is not there, so that time tells nothing */
#define NO_SECRET "00000000000000000000000000000000"

static void refuse(const ReceiptAccount *account, const char *message, const char *code,
				   const char *hint) pg_attribute_noreturn();
static void raise_unset(const ReceiptAccount *account, const char *what,
						const char *hint) pg_attribute_noreturn();
static void refuse_signature(const ReceiptAccount *account, const char *hint) pg_attribute_noreturn();

/* ---- arguments ---- */

/* Take a text that must be there */
static char *
required_text(FunctionCallInfo fcinfo, int argument, const char *name, int max)
{
	char	   *value = verb_text(fcinfo, argument, name, max);

	if (value == NULL)
		error_invalid_argument(psprintf("argument \"%s\" is NULL", name), "Give all arguments.");
	return value;
}

/* Take the bytes of a request */
static bytea *
required_bytes(FunctionCallInfo fcinfo, int argument, const char *name, int max)
{
	bytea	   *value;

	if (PG_ARGISNULL(argument))
		error_invalid_argument(psprintf("argument \"%s\" is NULL", name),
							   "Give the request's body as it came, byte by byte.");
	value = PG_GETARG_BYTEA_PP(argument);
	if (VARSIZE_ANY_EXHDR(value) > max)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("argument \"%s\" is too long", name),
				 errdetail_internal("{\"code\":\"payload_too_large\"}"),
				 errhint("It may have up to %d bytes; the provider sends no more.", max),
				 errhidestmt(true),
				 errhidecontext(true)));
	return value;
}

/* Take a signature or token; what is too long to be one is as if it were missing */
static char *
credential(FunctionCallInfo fcinfo, int argument)
{
	text	   *value;

	if (PG_ARGISNULL(argument))
		return NULL;
	value = PG_GETARG_TEXT_PP(argument);
	return VARSIZE_ANY_EXHDR(value) <= MAX_SIGNATURE ? text_to_cstring(value) : NULL;
}

/* ---- refusals ---- */

/* Refuse a call */
static void
refuse(const ReceiptAccount *account, const char *message, const char *code, const char *hint)
{
	if (account != NULL)
	{
		receipt_count_refused(account->account_id);
		account_read_in_vain(account->name, account->provider);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg_internal("%s", message),
			 errdetail_internal("{\"code\":\"%s\"}", code),
			 errhint("%s", hint),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Raise that there is nothing to check against */
static void
raise_unset(const ReceiptAccount *account, const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("provider account \"%s\" has no %s", account->name, what),
			 errhint("%s", hint),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Refuse a signature */
static void
refuse_signature(const ReceiptAccount *account, const char *hint)
{
	refuse(account, "the signature of the receipt is not valid", "invalid_signature", hint);
}

/* ---- receipts ---- */

/* Give one of the secrets that may have signed */
static const char *
secret_of(const ReceiptAccount *account, bool previous)
{
	const char *secret = NULL;

	if (account != NULL)
		secret = previous ? account->previous_secret : account->secret;
	return secret != NULL ? secret : NO_SECRET;
}

/* Is there such a secret? */
static bool
has_secret(const ReceiptAccount *account, bool previous)
{
	return account != NULL && (previous ? account->previous_secret : account->secret) != NULL;
}

/* Say whose account it is */
static ReceiptSource
source_of(const ReceiptAccount *account)
{
	ReceiptSource source = {account->account_id, account->sender, account->waba_id};

	return source;
}

/* Queue what was read for an account, and count it */
static void
take(const ReceiptDigest *digest)
{
	char	   *payload = digest_write(digest);

	if (payload != NULL)
	{
		queue_payload(OUTBOX_RECEIPTS, 0, payload);
		wake_at_commit();
	}
	receipt_count_taken(digest->source.account_id, digest->updates);
}

/* What has signed a body, of the account that was named */
typedef struct Signer
{
	const ReceiptAccount *account;
	const char *secret;
} Signer;

/* Find other accounts that the same secret has signed for */
static int
find_siblings(void *arg, bool waba, const char *id, ReceiptSource siblings[RECEIPT_SIBLINGS_MAX])
{
	const Signer *signer = arg;
	const ReceiptAccount *found[RECEIPT_SIBLINGS_MAX];
	int			n = account_siblings(signer->account, signer->secret, waba, id, found, RECEIPT_SIBLINGS_MAX);

	for (int i = 0; i < n; i++)
		siblings[i] = source_of(found[i]);
	return n;
}

/* Take what Meta tells */
Datum
otp_receive_meta(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "account", NAMEDATALEN);
	bytea	   *body = required_bytes(fcinfo, 1, "body", MAX_META_BODY);
	char	   *signature = credential(fcinfo, 2);
	const char *bytes = VARDATA_ANY(body);
	size_t		length = VARSIZE_ANY_EXHDR(body);
	VerbScope	scope;
	const ReceiptAccount *account;
	Signer		signer = {NULL, NULL};
	ReceiptSource source;
	MetaReceipt receipt;
	ListCell   *cell;

	verb_begin(&scope, "receive_meta", VERB_WRITES);
	account = account_for_receipts(name, "meta");
	if (account != NULL && account->secret == NULL)
		raise_unset(account, "app secret",
					"Call otp.configure_meta with app_secret, from the app's page Settings > Basic.");
	for (int previous = 0; previous < 2 && signer.secret == NULL; previous++)
	{
		const char *secret = secret_of(account, previous);

		if (meta_receipt_signed(signature, secret, bytes, length) && has_secret(account, previous))
			signer = (Signer)
		{
			account, secret
		};
	}
	if (signer.secret == NULL)
		refuse_signature(account,
						 "Give the name of an account, the raw bytes of the body, and the header X-Hub-Signature-256 as it came."
						 " The account's app secret must be that of the app which calls.");

	source = source_of(account);
	meta_receipt_read(&receipt, &source, find_siblings, &signer, bytes, length);
	foreach(cell, receipt.digests)
		take(lfirst(cell));
	verb_end(&scope);

	PG_RETURN_INT32(receipt.updates);
}

/* Take what Twilio tells */
Datum
otp_receive_twilio(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "account", NAMEDATALEN);
	char	   *url = required_text(fcinfo, 1, "url", MAX_URL);
	bytea	   *form = required_bytes(fcinfo, 2, "form", MAX_TWILIO_BODY);
	char	   *signature = credential(fcinfo, 3);
	VerbScope	scope;
	const ReceiptAccount *account;
	TwilioReceipt request;
	ReceiptSource source;
	ReceiptDigest digest;
	bool		good = false;

	verb_begin(&scope, "receive_twilio", VERB_WRITES);
	account = account_for_receipts(name, "twilio");
	if (account != NULL && account->secret == NULL)
		raise_unset(account, "auth token",
					"Call otp.configure_twilio with auth_token: Twilio signs with it, also where an API key signs in.");
	twilio_receipt_parse(&request, url, VARDATA_ANY(form), VARSIZE_ANY_EXHDR(form));
	for (int previous = 0; previous < 2 && !good; previous++)
		good = twilio_receipt_signed(&request, signature, secret_of(account, previous)) &&
			has_secret(account, previous);
	if (!good)
		refuse_signature(account,
						 "Give the name of an account, the address exactly as status_callback has it with the query that came,"
						 " the raw bytes of the body, and the header X-Twilio-Signature.");

	source = source_of(account);
	digest_begin(&digest, &source);
	twilio_receipt_read(&digest, &request);
	take(&digest);
	verb_end(&scope);

	PG_RETURN_INT32(digest.updates);
}

/* ---- the handshake ---- */

/* Compare tokens by their hashes: their length is nobody's business either */
static bool
token_equal(const char *given, const char *right)
{
	HashPart	parts[] = {
		{given, given != NULL ? strlen(given) : 0},
		{right, strlen(right)}
	};
	uint8		given_hash[HASH_LENGTH];
	uint8		right_hash[HASH_LENGTH];

	hash_sha256(&parts[0], 1, given_hash);
	hash_sha256(&parts[1], 1, right_hash);
	return code_equal(given_hash, right_hash, HASH_LENGTH) && given != NULL;
}

/* Answer Meta's handshake */
Datum
otp_receive_meta_handshake(PG_FUNCTION_ARGS)
{
	char	   *name = required_text(fcinfo, 0, "account", NAMEDATALEN);
	char	   *mode = credential(fcinfo, 1);
	char	   *token = credential(fcinfo, 2);
	char	   *challenge = credential(fcinfo, 3);
	VerbScope	scope;
	const ReceiptAccount *account;
	bool		good;

	/* A GET of PostgREST is read-only, and nothing is written here */
	verb_begin(&scope, "receive_meta_handshake", VERB_READS);
	account = account_for_receipts(name, "meta");
	if (account != NULL && account->verify_token == NULL)
		raise_unset(account, "verify token",
					"Call otp.configure_meta with verify_token, and give Meta the same.");
	good = token_equal(token, account != NULL ? account->verify_token : NO_SECRET) && account != NULL;
	if (!good || mode == NULL || strcmp(mode, "subscribe") != 0)
		refuse(account, "the handshake is not valid", "invalid_verify_token",
			   "hub.mode must be subscribe, and hub.verify_token the verify_token of otp.configure_meta.");
	verb_end(&scope);

	/* It goes into a page: nothing that a browser could make more of */
	if (!channel_is_word(challenge, "_-", MAX_CHALLENGE))
		error_invalid_argument("argument \"challenge\" is not valid",
							   "It has letters, digits, _ and -, up to 128 of them.");
	PG_RETURN_TEXT_P(cstring_to_text(challenge));
}
