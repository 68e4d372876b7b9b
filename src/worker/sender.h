/*-------------------------------------------------------------------------
 *
 * sender.h
 *	  The parts of a sender.
 *
 * sender.c turns the loop, sender_turn.c runs its transactions: in them,
 * sender_claim.c takes what is due and sender_settle.c writes down what came
 * of it, as sender_judge.c has decided. owed.c holds the messages in memory;
 * follow.c waits with those that were accepted for the end of their
 * verifications, and receipt.c takes in what providers tell of them.
 * account.c knows the provider accounts and their breakers, credit.c what
 * messages give back to a balance, or cost besides.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SENDER_H
#define OTP_SENDER_H

#include "access/xlogdefs.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "base/http.h"
#include "base/roster.h"
#include "channel/channel.h"
#include "store/message.h"
#include "store/outbox.h"
#include "store/route.h"
#include "worker/event.h"

/* ---- requests ---- */

/* Whose a request is: the first member of every owner that the HTTP client hands back */
typedef enum RequestKind
{
	REQUEST_MESSAGE,			/* an Owed: its message, or a question about
								 * it */
	REQUEST_WEBHOOK,
	REQUEST_JOB
} RequestKind;

/* ---- accounts (account.c) ---- */

typedef struct Account
{
	int32		account_id;		/* hash key */
	uint32		generation;		/* of the configuration it was checked against */
	bool		gone;
	const char *problem;		/* why it cannot be used, or NULL */
	bool		problem_passes; /* waiting may help: the key file */
	char		reported[ROSTER_ERROR_SIZE];	/* the problem that was logged */
	TimestampTz check_again_at; /* while there is a passing problem */
	MemoryContext context;		/* of provider's strings */
	ProviderAccount provider;

	RosterBreaker breaker;
	long		delay_ms;		/* last waiting time of the open breaker */
	bool		probing;		/* one message is under way to find out */
	int			held;			/* messages that wait for the breaker */

	int			admitted;		/* messages in flight, or about to be */
	dlist_head	crowd;			/* messages that wait for their number to fall */
	dlist_node	crowded;		/* of sender.crowded, when there are any */

	/* Throttled: time between starts, 0 when not */
	int64		gap_us;
	TimestampTz hold_until;
	TimestampTz next_start;
	TimestampTz overloaded_at;
	int			overloads;		/* in a row */
} Account;

/* A number that messages are sent from, and which its receipts name */
typedef struct SendingNumber
{
	struct
	{
		int32		account_id;
		char		number[RECEIPT_WORD_SIZE];
	}			key;			/* hashed as bytes: zeroed first */
	bool		armed;			/* its receipts come: silence means something */
	bool		arming;			/* that they do is written in this turn */
} SendingNumber;

/* What is known of a workspace; hash key first */
typedef struct RouteEntry
{
	int32		workspace_id;
	uint32		generation;
	bool		gone;
	MemoryContext context;
	Route		route;
} RouteEntry;

typedef struct Owed Owed;

typedef enum Admission
{
	ADMIT_START,
	ADMIT_WAIT,					/* throttled, until a time */
	ADMIT_CROWDED,				/* has its share of requests in flight */
	ADMIT_UNAVAILABLE			/* breaker open or account unusable, until a
								 * time */
} Admission;

extern void accounts_init(void);

/* Take in changes of the configuration; in a claiming transaction. */
extern void accounts_refresh(void);

/* Read what is not known yet; in a claiming transaction. NULL: it is gone. */
extern const Route *account_route(int32 workspace_id);
extern Account *account_get(int32 account_id, TimestampTz now);

/* What is known, without looking; may be NULL. */
extern Account *account_known(int32 account_id);
extern const Route *account_known_route(int32 workspace_id);

/*
 * May a message be handed to the account now? If so, it counts as in flight
 * until its answer is judged, or it is dismissed; its account_id is to be set.
 * Waiting until later than latest is of no use to it.
 */
extern Admission account_admit(Account *a, Owed *o, TimestampTz now,
							   TimestampTz latest, TimestampTz *until);

/* How many more may be admitted? All, if none would be for another reason. */
extern int	account_places(const Account *a, TimestampTz now);

/* A message that was admitted does not go, after all. */
extern void account_dismiss(Owed *o, TimestampTz now);

/* The same for the breaker alone, changing nothing. */
extern bool account_blocked(const Account *a, TimestampTz now, TimestampTz *until);

/* Take in what an account has answered to a message. */
extern void account_judged(Account *a, Owed *o, const Judgement *j, TimestampTz now);

/* The sending number or account that its receipts name; "" when it has none. */
extern const char *account_own_number(const Account *a);

/*
 * The number that a workspace sends from through an account, over WhatsApp or
 * as SMS, for as long as we live; what is known will do. NULL: there is none.
 */
extern SendingNumber *account_number(const Account *a, int32 workspace_id, bool sms);

/* Numbers whose receipts have come in this turn: written, or not */
extern void account_arm(SendingNumber *number);
extern void accounts_armed(bool written);

/* Take in what a receipt says of the account itself. */
extern void account_receipt_judged(Account *a, const Judgement *j, TimestampTz now);

/* The provider restricts the account, or (NULL) does so no more. */
extern void account_restrict(Account *a, const char *why, TimestampTz now);

/* Is any breaker not closed? Then changes of the configuration matter. */
extern bool accounts_troubled(void);

/* ---- messages ---- */

/* What is to be written of a message */
typedef enum OwedEnd
{
	END_NONE,
	END_DROP,					/* nothing is owed any more */
	END_SENT,
	END_FAILED,					/* for good: so is the verification */
	END_KEEP,					/* for good, but another message stands */
	END_RETRY,
	END_FALLBACK,				/* the same code by SMS */
	END_EXPIRED,				/* nobody has verified it in time */
	END_USED_UP					/* too many wrong guesses */
} OwedEnd;

/* Where a row is in memory */
typedef enum OwedPlace
{
	OWED_NOWHERE,				/* just being decided on */
	OWED_WAITS,					/* to be handed to the provider: in heap */
	OWED_CROWDED,				/* the same, in its account's crowd */
	OWED_FLIES,
	OWED_FINISHED,
	OWED_FOLLOWED				/* until its verification ends: in followed */
} OwedPlace;

typedef struct ReceiptItem ReceiptItem;

/* A message's row of the outbox in the sender's memory */
struct Owed
{
	RequestKind kind;			/* first: see there */
	OwedPlace	place;
	pairingheap_node waiting;	/* by row.due_at */
	dlist_node	node;			/* of in_flight, finished or a crowd */
	Owed	   *same;			/* the next row of the same verification */
	OutboxRow	row;
	int32		account_id;		/* in flight with it, or waits for it */
	SendingNumber *number;		/* that it was sent from; NULL: by another
								 * sender, before us */
	bool		fresh;			/* read in this turn */
	bool		held;			/* waits for a breaker; counted there */
	bool		reserved;		/* has waited for its turn at a throttled
								 * account */
	bool		admitted;		/* counted there as in flight */
	bool		probe;
	bool		fallback_sms;
	bool		own_sender;		/* it names a sender other than the account's */
	bool		accepted;		/* by the provider */
	bool		delivered;		/* some message of the verification was */
	bool		arrived;		/* and it was this one */
	bool		told;			/* its provider has said its last word */
	bool		waited;			/* has waited for fallback_after */
	bool		asking;			/* what flies, or is to, is a question */
	bool		over;			/* while it flies or is written: the
								 * verification has ended */
	bool		gone;			/* its row is being deleted */
	bool		forsaken;		/* its verification has failed without it */
	OwedEnd		after;			/* while a question flies: what has come in
								 * between */
	TimestampTz started_at;
	TimestampTz accepted_at;
	TimestampTz asked_at;
	ReceiptItem *early;			/* receipts that came too early */

	/* what came of it, until that is written */
	OwedEnd		end;
	bool		tried;			/* a request was made */
	bool		record;			/* otp.messages gets to know */
	bool		unknown;		/* nobody knows whether it was sent */
	bool		again;			/* was accepted, and is sent once more */
	bool		late;			/* not delivered in time */
	bool		served;			/* it, or what it stands in for, has come so
								 * far that it is not given back */
	TimestampTz ended_at;
	TimestampTz retry_at;
	int			http_status;
	int			provider_code;
	char	   *message_id;		/* in outcome_context; server encoding */
	char	   *detail;
	const char *reason;
};

/* A row of the outbox that is no message */
typedef struct OtherRow
{
	dlist_node	node;
	OutboxRow	row;
} OtherRow;

/* One item of a claim, until the transaction has ended */
typedef enum ClaimDecision
{
	CLAIM_UNDECIDED,
	CLAIM_IGNORE,				/* another server's */
	CLAIM_WAIT,
	CLAIM_CROWD,
	CLAIM_FOLLOW,				/* nothing to send, or not now */
	CLAIM_END,					/* as the outcome says */
	CLAIM_START
} ClaimDecision;

typedef struct ClaimItem
{
	Owed	   *owed;
	ClaimDecision decision;
	TimestampTz until;
	HttpRequest request;
} ClaimItem;

typedef struct Sender
{
	Oid			database;
	HttpClient *client;
	int			max_in_flight;	/* otp.max_in_flight, if there are descriptors */
	MemoryContext owed_context; /* slab of Owed */
	MemoryContext outcome_context;
	MemoryContext turn_context; /* reset after every turn */

	OutboxPosition position;
	OutboxPosition next_position;
	bool		caught_up;		/* the queue has been read to its end once */
	bool		foreign;		/* there were rows of other servers in it */

	pairingheap heap;			/* what waits, by due_at */
	int			waiting;		/* there and in crowds */
	pairingheap followed;		/* what is followed, by due_at */
	int			following;
	dlist_head	crowded;		/* accounts with a crowd */
	dlist_head	in_flight;		/* by start */
	int			flying;
	dlist_head	finished;		/* to be written */
	int			finishing;

	/* the claim of this turn */
	ClaimItem  *items;
	int			nitems;
	OtherRow  **taken;			/* rows that are no messages */
	int			ntaken;
	bool		more;			/* the queue may hold further rows */
	XLogRecPtr	flush_lsn;		/* to be on disk before anything is sent */

	/* the settle of this turn */
	int			settling;
	OutboxRow  *updated;		/* new values of rows that stay, in order */
	MessageEnd *ends;			/* how those stand whose time is up, in order */
	dlist_head	notes;			/* ends that are to be told */
	int			nnotes;
	int			noting;			/* of those, in this turn */

	bool		look;			/* there may be something to claim */
	TimestampTz next_look;
	TimestampTz no_turn_before;
	int			errors;			/* turns in a row that failed */
	int			careful_turns;
	bool		careful;		/* one message at a time: one of them breaks
								 * the claim */
	int64		accepted;
	int64		retried;
	int64		failed;
	int64		fallbacks;
} Sender;

extern Sender sender;

/* Rows in memory (owed.c) */
extern void owed_init(void);
extern TimestampTz owed_next_due(void);
extern Owed *owed_new(const OutboxRow *row);
extern void owed_clear_outcome(Owed *o);
extern void owed_free(Owed *o);
extern void owed_wait(Owed *o, TimestampTz due_at);
extern Owed *owed_first_due(TimestampTz now);
extern void owed_hold(Owed *o, Account *a);
extern void owed_unhold(Owed *o);
extern void owed_release_held(int32 account_id, TimestampTz now);
extern void owed_crowd(Owed *o);
extern void owed_release_crowds(TimestampTz now);

/* The rows of a verification, linked by "same"; NULL when there is none. */
extern Owed *owed_find(const pg_uuid_t *id);

/* The workspace of a verification that has rows, or had some not long ago; 0: unknown. */
extern int32 owed_workspace(const pg_uuid_t *id);

/* Forget those that had rows a long time ago; to be called now and then. */
extern void owed_forget(TimestampTz now);

/* Is there a later message of the same verification? */
extern bool owed_is_newest(const Owed *o);

/* Take a row out of the heap, crowd or followed ones that it is in. */
extern void owed_take_out(Owed *o);

/* Note what came of a message: it will be written by the next settle. */
extern void owed_finish(Owed *o, OwedEnd end, TimestampTz now);

/*
 * Its verification has ended, or another message is in its place: nothing is
 * owed any more, as soon as it is not in flight.
 */
extern void owed_drop(Owed *o, TimestampTz now);

/* Following (follow.c) */
extern void follow(Owed *o, TimestampTz now);
extern void follow_until(Owed *o, TimestampTz due_at);
extern TimestampTz follow_next_due(void);

/* Do what is due of those that are followed; outside of transactions. */
extern void follow_due(TimestampTz now);

/* Receipts (receipt.c) */
extern void receipts_init(void);

/* Take a row over; after a claim's commit. */
extern void receipts_take(const OutboxRow *row);

/* Are there any to be written now; and when, if not? 0: there are none. */
extern bool receipts_pending(void);
extern TimestampTz receipts_next(TimestampTz now);

/* The early ones of a message can be looked at now: it is written, or goes. */
extern void receipts_release(Owed *o);

/* What a provider has answered to a question. */
extern void receipts_answer(Owed *o, const Receipt *receipt);

/*
 * Write some, in a settling transaction, which may finish messages that are
 * followed; gives events, and the rows of those that are done. Done or undo
 * is to follow.
 */
extern void receipts_write(Event *events, int *nevents, OutboxRow **deleted, int *ndeleted);
extern void receipts_done(TimestampTz now);
extern void receipts_undo(TimestampTz now);

/* Most receipts and rows that one settle writes */
#define RECEIPT_BATCH 256

/* ---- transactions (sender_turn.c) ---- */

typedef enum TurnStart
{
	TURN_STARTED,
	TURN_LOCKED,				/* somebody is about to drop or move the queue */
	TURN_ABSENT					/* the extension is not there */
} TurnStart;

/*
 * Run a piece of work in a short transaction, with SPI, the owner's scope and
 * an active snapshot: false when it failed, or could not begin. Raises
 * nothing; the error has been logged, and *absent set when the extension is
 * not there (it may be NULL).
 */
extern bool turn_do(void (*work) (void *arg), void *arg, bool *absent);

/*
 * Write what has finished, if settle is set, and claim up to so many messages
 * and start them. Raises nothing: after an error it says when to try again.
 */
extern TurnStart turn_run(int slots, bool settle);

/*
 * Write some receipts, and what follows from them; for when there is nothing
 * else to write: what goes wrong with them is in nobody's way. False when it
 * has to wait for a lock on the queue, or the extension is not there.
 */
extern bool turn_receipts(void);

/* Delete expired rows that are nobody's. */
extern void turn_clear_away(TimestampTz now);

/* Write the ledger back; true when there was something in it. */
extern bool turn_write_back(void);

/* sender_claim.c: inside the transaction; after its commit; after its abort */
extern void claim_take(int limit, TimestampTz now);
extern void claim_done(TimestampTz now);
extern void claim_undo(bool blame, const char *why, TimestampTz now);

/* sender_settle.c; receipts: those as well */
extern void settle_write(bool receipts);
extern void settle_done(TimestampTz now);
extern void settle_undo(bool blame);

/* Credits (credit.c); upkeep.h has the rest of it */

/*
 * Note that a fallback was accepted, or that a message has failed, and its
 * fallback, too, if there was one: whose price is to be taken, or given back,
 * in this transaction. No harm is done by noting it twice.
 */
extern void credits_note_fallback(const Owed *o);
extern void credits_note_failed(const Owed *o);

/* Would it be given back, if it failed? */
extern bool credits_returnable(const Owed *o);

/* Forget what was noted, before a transaction notes anything; write it. */
extern void credits_begin(void);
extern void credits_write(void);

/* The balance of a workspace has changed: to be looked at. */
extern void credits_touch(int32 workspace_id);

/* Is there anything to write, and since when? */
extern bool settle_pending(void);

/* sender_judge.c */
extern void judge_response(const HttpResponse *response, TimestampTz now);
extern void judge_abandoned(Owed *o, TimestampTz now);
extern bool judge_can_fall_back(const Owed *o, TimestampTz now);

/*
 * What follows from a receipt of failure, for a message that is followed: it
 * is finished, or, with another message standing, goes on being followed.
 */
extern void judge_failed(Owed *o, const Judgement *j, bool another_stands, TimestampTz now);

/* A receipt proves that the provider has taken a message that waits. */
extern void judge_proven(Owed *o, int32 account_id, const char *message_id, TimestampTz now);

/* The latest time that a message can wait for: later, SMS is better, or nothing. */
extern TimestampTz judge_latest(const Owed *o, TimestampTz now);

/* Less life than this left: the code cannot be of use any more. */
#define MIN_LIFE_US (1 * INT64CONST(1000000))

/* SMS words (sms_text.c): palloc'd, in server encoding */
extern char *sms_text_fill(const char *body, const char *last_line, const char *code,
						   int expires_in, const char *app_name);

#endif							/* OTP_SENDER_H */
