/*-------------------------------------------------------------------------
 *
 * receipt.h
 *	  What providers tell by calling back: read here, acted on by the sender.
 *
 * A callback that is rightly signed is boiled down to a small JSON object,
 * which waits in the outbox. It is ASCII throughout, whatever the provider
 * sent: so it has a place in every encoding.
 *
 * Functions give memory of the current context.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_RECEIPT_H
#define OTP_RECEIPT_H

#include "nodes/pg_list.h"

#include "base/ulid.h"
#include "channel/channel.h"

/* An account whose secret signed; strings may be NULL */
typedef struct ReceiptSource
{
	int			account_id;
	const char *sender;			/* phone_number_id or account_sid */
	const char *waba_id;
} ReceiptSource;

/* A small object being written */
typedef struct ReceiptDigest
{
	ReceiptSource source;
	int			updates;		/* what is of use in it */
	char		from[CHANNEL_MESSAGE_ID_SIZE];	/* the sending number or
												 * account that was told
												 * first; "" none */
	StringInfoData statuses;
	StringInfoData templates;
	char		restriction[CHANNEL_DETAIL_SIZE];	/* "": none */
	bool		restored;
} ReceiptDigest;

/*
 * Begin a digest, add to it, and write it as text; NULL when there is nothing
 * of use. An id is one that ulid_parse takes; from is the sending number or
 * account as it was told, or NULL. Of restrictions the last one holds; ""
 * lifts them.
 */
extern void digest_begin(ReceiptDigest *digest, const ReceiptSource *source);
extern void digest_add_status(ReceiptDigest *digest, const char *id, int number, const char *from,
							  const Receipt *receipt);
extern void digest_add_template(ReceiptDigest *digest, const char *name, const char *language,
								const char *status, const char *reason, const char *template_id);
extern void digest_set_restriction(ReceiptDigest *digest, const char *words);
extern char *digest_write(const ReceiptDigest *digest);

/* Copy printable ASCII, whole or, when it does not fit or is anything else, not at all. */
extern void receipt_copy_word(char *out, size_t size, const char *text);

/*
 * Write words as ASCII with digits masked: two parts, either of which may be
 * missing. code is the provider's, or 0: then it is not taken off the front.
 */
extern void receipt_copy_detail(char out[CHANNEL_DETAIL_SIZE], int code,
								const json_t *words, const json_t *more);

/* Read the number of a message: 1 to 5 digits up to the end. */
extern bool receipt_number(const char *text, int *number);

/* Is this a number that numeric takes: "-0.00750"? */
extern bool receipt_is_decimal(const char *text);

/* ---- Meta (meta_receipt.c) ---- */

/* Check the header X-Hub-Signature-256, "sha256=...", against a secret. */
extern bool meta_receipt_signed(const char *signature, const char *secret, const char *body, size_t length);

/* Most accounts, besides the one named, with the same number or WABA */
#define RECEIPT_SIBLINGS_MAX 64

/*
 * Finds the accounts whose secret has signed the body as well and that a WABA
 * or, unless waba is set, a sending number is of. The one named may be among
 * them. Gives their number. It may raise, and need not find the same ones
 * twice; what they point to must outlive the reading.
 */
typedef int (*ReceiptSiblings) (void *arg, bool waba, const char *id,
								ReceiptSource siblings[RECEIPT_SIBLINGS_MAX]);

/* A body, shared out among the accounts that it tells of */
typedef struct MetaReceipt
{
	List	   *digests;		/* ReceiptDigest; first that of the account
								 * named, which alone may be empty */
	int			updates;		/* what is of use, whoever gets it */
	int			templates;		/* of that, those of templates */
	ReceiptSiblings find_siblings;
	void	   *arg;
} MetaReceipt;

/* Read a body that is rightly signed. Nothing in it can do harm. */
extern void meta_receipt_read(MetaReceipt *receipt, const ReceiptSource *named,
							  ReceiptSiblings find_siblings, void *arg,
							  const char *body, size_t length);

/* ---- Twilio (twilio_receipt.c) ---- */

/* A field of a form, or of the query of an address */
typedef struct FormField
{
	char	   *name;			/* decoded; may hold NULs, and has one at its
								 * end */
	size_t		name_length;
	char	   *value;			/* the same */
	size_t		value_length;
} FormField;

typedef struct Form
{
	FormField  *fields;
	int			count;
} Form;

/* A callback, taken apart */
typedef struct TwilioReceipt
{
	char	   *url;			/* without a fragment */
	char	   *other_url;		/* the same with, or without, its port */
	Form		query;
	Form		form;			/* empty when the body is hashed */
	StringInfoData signed_form; /* as it is signed, behind the address */
	const char *body;
	size_t		length;
	bool		hashed;			/* the query has the hash of the body, */
	bool		hash_differs;	/* which is another one's */
} TwilioReceipt;

/* Take a request apart; body must outlive it. */
extern void twilio_receipt_parse(TwilioReceipt *request, const char *url, const char *body, size_t length);

/* Check the header X-Twilio-Signature against a secret. */
extern bool twilio_receipt_signed(const TwilioReceipt *request, const char *signature, const char *secret);

/* What Twilio's word for a status means; RECEIPT_NOTHING for NULL and all that end nothing. */
extern ReceiptStatus twilio_receipt_status(const char *status);

/* Read a request that is rightly signed. */
extern void twilio_receipt_read(ReceiptDigest *digest, const TwilioReceipt *request);

#endif							/* OTP_RECEIPT_H */
