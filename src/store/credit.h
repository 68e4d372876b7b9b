/*-------------------------------------------------------------------------
 *
 * credit.h
 *	  What metered workspaces have left.
 *
 * All functions need a transaction, SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CREDIT_H
#define OTP_CREDIT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "store/workspace.h"

/*
 * Pay for a message in this transaction; gives what it cost, 0 for a
 * workspace that is not metered. Raises insufficient_credits. Called last,
 * because it locks a stripe until the end of the transaction.
 */
extern int	credit_take(const Workspace *w);

/* ---- for otp.add_credits ---- */

/* The most that a workspace may have */
#define CREDIT_BALANCE_MAX INT64CONST(1000000000000000)

/*
 * Note in the ledger what an owner adds, or (negative) takes. False when the
 * workspace has had this reference before, be it in a transaction that it
 * has to wait for; then *known is the amount of that time. reference may be
 * NULL.
 */
extern bool credit_enter(int32 workspace_id, int64 amount, const char *reference, const char *role, int64 *known);

/* Give a workspace credits. Waits for nobody. */
extern void credit_add(int32 workspace_id, int64 amount);

/*
 * Take credits from it. Waits for transactions that hold some, if there are
 * not enough without; false when there are not.
 */
extern bool credit_remove(int32 workspace_id, int64 amount);

/* What is left, by what has been committed and by this transaction. */
extern int64 credit_balance(int32 workspace_id);

/*
 * ---- for the sender: nothing waits for anybody's lock, and the current
 * memory context is left as it is ----
 */

/* A message whose price, or whose end, changes the balance */
typedef struct CreditNote
{
	int32		workspace_id;
	pg_uuid_t	id;				/* the verification's */
	int16		number;			/* of the message, or of the one that its
								 * fallback stands in for */
	int			credits;		/* what was paid for that */
} CreditNote;

/* Charge fallbacks, where a workspace prices them; each once. */
extern void credit_charge_fallbacks(const CreditNote *notes, int n);

/* Give back what was paid for messages, and for their fallbacks, where a workspace wants that; each once. */
extern void credit_refund(const CreditNote *notes, int n);

/* The next workspace behind *after with changes to be put into its stripes; false when there is none. */
extern bool credit_next_changed(int32 *after);

/* Most workspaces that credit_next_metered gives */
#define CREDIT_BATCH 100

/* The next metered workspaces behind an id, in order; gives their number. */
extern int	credit_next_metered(int32 after, int32 ids[CREDIT_BATCH]);

/* What is to be done with stripes */
typedef enum CreditChore
{
	CREDIT_CHORE_NONE,
	CREDIT_CHORE_ADD,			/* put a small change into one */
	CREDIT_CHORE_TAKE,			/* the same, a debt */
	CREDIT_CHORE_LEVEL			/* put changes into all, and level them */
} CreditChore;

/* How a workspace stands */
typedef struct CreditState
{
	char	   *workspace;		/* its name, in the current context */
	bool		metered;
	int64		low;			/* credits_low; 0: none */
	int64		balance;
	bool		told;			/* that it is low */
	CreditChore chore;
} CreditState;

/* Read it; false when there is no such workspace. */
extern bool credit_load(int32 workspace_id, CreditState *state);

/* Do what is to be done, as far as stripes are free. */
extern void credit_do_chore(int32 workspace_id, CreditChore chore);

/* Note that credits are low, or are so no more. */
extern void credit_warn(int32 workspace_id, TimestampTz at, int64 balance, int64 low);
extern void credit_end_warning(int32 workspace_id, TimestampTz at);

/* Forget warnings that were over before a time. */
extern void credit_delete_warnings(TimestampTz before);

#endif							/* OTP_CREDIT_H */
