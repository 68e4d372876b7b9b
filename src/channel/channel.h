/*-------------------------------------------------------------------------
 *
 * channel.h
 *	  The ways out: build a provider's request, judge its answer.
 *
 * A channel knows the wire format of one provider and what its error codes
 * mean. It knows nothing of the queue: what follows from a judgement is the
 * sender's business.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CHANNEL_H
#define OTP_CHANNEL_H

#include "base/json.h"

#include "base/http.h"

/* Longest provider message id kept; Meta's have about 60 to 120 characters. */
#define CHANNEL_MESSAGE_ID_SIZE 160
#define CHANNEL_DETAIL_SIZE 256

/* A row of otp.provider_accounts, its secrets opened. */
typedef struct ProviderAccount
{
	int			account_id;
	int64		version;
	const char *name;
	const char *provider;		/* "meta" | "twilio" */
	json_t	   *settings;		/* objects; NULL counts as empty */
	json_t	   *secrets;
} ProviderAccount;

/* One message to hand to a provider. */
typedef struct ChannelMessage
{
	const char *otp_id;
	int			number;			/* which message of this verification */
	const char *phone;			/* E.164 */
	const char *code;
	const char *template;
	const char *language;
	int			expires_in;		/* seconds of life left */
	const char *text;			/* SMS body, already filled */
	const char *sender;			/* in place of the account's: a sending number
								 * or name, a messaging service; or NULL */
	const char *dlt_entity_id;
	const char *dlt_template_id;
} ChannelMessage;

typedef enum Verdict
{
	VERDICT_ACCEPTED,
	VERDICT_RETRY,				/* same channel, with back-off */
	VERDICT_REFUSED,			/* final for this message */
	VERDICT_ACCOUNT				/* final for this message, and the account is
								 * unusable */
} Verdict;

typedef struct Judgement
{
	Verdict		verdict;
	bool		ambiguous;		/* it may have been sent: one repeat at most */
	bool		overloaded;		/* slow the whole account down */
	bool		down;			/* counts towards the account's breaker */
	int			min_delay_ms;	/* wait at least this long, or 0 */
	bool		fallback;		/* SMS makes sense */
	bool		sender_refused; /* it is about the sender that was named */
	int			provider_code;	/* 0: none */
	int			http_status;	/* 0: none */
	char		message_id[CHANNEL_MESSAGE_ID_SIZE];	/* "" unless accepted */
	char		detail[CHANNEL_DETAIL_SIZE];	/* the provider's or libcurl's
												 * words: ASCII, digits masked */
	const char *reason;			/* should this be the end: delivery_failed,
								 * template_not_found, provider_unavailable;
								 * NULL when accepted */
} Judgement;

/* What a provider's error code, or a span of them, means. */
typedef enum ChannelFlag
{
	CODE_AMBIGUOUS = 1 << 0,
	CODE_OVERLOADED = 1 << 1,
	CODE_DOWN = 1 << 2,
	CODE_FALLBACK = 1 << 3,
	CODE_TEMPLATE = 1 << 4,		/* the template is missing or not usable */
	CODE_SENDER = 1 << 5		/* the sender that was named cannot be used */
} ChannelFlag;

typedef struct ChannelCode
{
	int			first;
	int			last;
	Verdict		verdict;
	int			flags;
	int			min_delay_ms;
} ChannelCode;

/* What a receipt, or the answer to a question, tells of a message */
typedef enum ReceiptStatus
{
	RECEIPT_NOTHING,			/* still on its way, or not known */
	RECEIPT_SENT,
	RECEIPT_DELIVERED,			/* or read */
	RECEIPT_FAILED				/* for the reason of its code */
} ReceiptStatus;

#define RECEIPT_WORD_SIZE 40

typedef struct Receipt
{
	ReceiptStatus status;
	int64		at;				/* Unix time in seconds; 0: not told */
	int			code;			/* the provider's; 0: none */
	char		message_id[CHANNEL_MESSAGE_ID_SIZE];	/* "": not told */
	char		detail[CHANNEL_DETAIL_SIZE];	/* ASCII, digits masked */
	char		category[RECEIPT_WORD_SIZE];	/* of the price; "" not told */
	char		price[RECEIPT_WORD_SIZE];	/* a decimal number; "" not told */
	char		price_unit[RECEIPT_WORD_SIZE];
} Receipt;

typedef struct Channel
{
	const char *name;			/* "whatsapp" | "sms" */
	const char *provider;

	/*
	 * Build the request, its parts palloc'd in the current context. False
	 * with a reason in error (no secret, phone or code in it) when the
	 * account's settings do not allow one. Leaves timeout_ms and owner to the
	 * caller.
	 */
	bool		(*build) (const ProviderAccount *account,
						  const ChannelMessage *message,
						  HttpRequest *out, char *error, size_t error_size);

	/* Judge what came of it; also for requests that got no answer. */
	void		(*judge) (const ProviderAccount *account,
						  const HttpResponse *response, Judgement *out);

	/*
	 * Build the question what became of a message; as build. NULL when the
	 * provider cannot be asked.
	 */
	bool		(*ask) (const ProviderAccount *account, const char *message_id,
						HttpRequest *out, char *error, size_t error_size);

	/* Read the answer; RECEIPT_NOTHING when it tells nothing (yet). */
	void		(*read_answer) (const HttpResponse *response, Receipt *out);

	const ChannelCode *codes;
	int			ncodes;
} Channel;

extern const Channel channel_meta;
extern const Channel channel_twilio;

/* Is this sender of Twilio's the SID of a messaging service? */
extern bool twilio_is_service(const char *sender);

/* The channel of that name over that provider, or NULL. */
extern const Channel *channel_for(const char *channel_name, const char *provider);

/*
 * Judge a bare provider code, as delivery receipts carry it. Fills all of
 * out; false when the code is not in the channel's table (then it is a
 * refusal).
 */
extern bool channel_judge_code(const Channel *channel, int code, Judgement *out);

/*
 * For the channels themselves
 */

/* A non-empty string of an object, or NULL. */
extern const char *channel_string(const json_t *object, const char *key);

/* ASCII letters, digits and the characters in extra, 1 to max of them. */
extern bool channel_is_word(const char *text, const char *extra, size_t max);

/* The account's base_url or the default, palloc'd without a slash at its end; NULL when bad. */
extern char *channel_base_url(const ProviderAccount *account, const char *preset);

/* An error code written as integer or as digits. */
extern bool channel_json_code(const json_t *value, int *code);

/* Begin a judgement: nothing known but what the response says of itself. */
extern void channel_begin(const HttpResponse *response, Judgement *out);

/* Judge a request without a (whole) answer; false when there is one. */
extern bool channel_judge_silence(const Channel *channel, const HttpResponse *response, Judgement *out);

/* Judge by the HTTP status alone. */
extern void channel_judge_status(const Channel *channel, const HttpResponse *response, Judgement *out);

/* Judge by the provider's code; the status and transient decide on unknown ones. */
extern void channel_judge_answer(const Channel *channel, const HttpResponse *response,
								 int code, bool transient, Judgement *out);

/* Accept, keeping the provider's message id. */
extern void channel_accept(const char *message_id, Judgement *out);

/* Add words to the detail; anything but a string is ignored. */
extern void channel_add_detail(Judgement *out, const char *before, const json_t *words, const char *after);

/* End a judgement: reason, waiting time, masked detail. */
extern void channel_finish(const HttpResponse *response, Judgement *out);

#endif							/* OTP_CHANNEL_H */
