/*-------------------------------------------------------------------------
 *
 * failures.h
 *	  The rows of otp.phone_failures: wrong guesses per phone.
 *
 * A phone has one row that the sender writes, from the ledger. Whoever
 * guesses right, or unlocks the phone, adds one that says up to where failures
 * are forgiven: it holds when its transaction has committed, whatever becomes
 * of the server in between, and nobody waits for a lock. The sender merges
 * the two later. So a phone's count is what all its rows say together.
 *
 * All functions need a transaction, SPI_connect and the owner's scope. Phones
 * are folded (phone_fold), but where it says otherwise.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_FAILURES_H
#define OTP_FAILURES_H

#include "base/ledger.h"
#include "store/workspace.h"

/* What the policy says of wrong guesses; w may be NULL, of a workspace that has gone. */
extern void failures_policy(const Workspace *w, PhonePolicy *policy);

/*
 * Read a phone's count as it is committed, whatever the transaction's
 * snapshot; what this transaction itself forgives does not count. With
 * names, also what stands under the name of a forgotten phone. The window may
 * be over (phone_count_trim).
 */
extern void failures_read(int32 workspace_id, const char *phone, bool names, PhoneCount *count);

/*
 * A phone's count by its rows and the ledger, trimmed. Gives how many of it
 * are not yet compared.
 */
extern int	failures_of(int32 workspace_id, const char *phone, TimestampTz now, PhoneCount *count);

/*
 * Forgive the failures up to a total, when this transaction commits. With
 * since, the 24 hours begin anew then, too; 0 leaves them as they are.
 */
extern void failures_forgive(int32 workspace_id, const char *phone, TimestampTz since, int64 forgiven);

/*
 * For the sender: merge a phone's rows into one, with what the ledger says
 * (may be NULL). True when the rows said all of it already: nothing was
 * written. Without a row of the sender's and without the ledger, nothing is merged.
 */
extern bool failures_merge(int32 workspace_id, const char *phone, const PhoneCount *ledger);

/* How a phone stands, by its rows and the ledger */
typedef struct PhoneFailures
{
	int			failures;		/* within 24 hours from since */
	TimestampTz since;			/* 0: none */
	int			in_row;			/* since the last right guess */
	TimestampTz last_at;		/* 0: none, or not known */
	TimestampTz free_at;		/* when a guess is compared again: 0 at once,
								 * PG_INT64_MAX when somebody unlocks it */
} PhoneFailures;

/* Tell how a phone stands, in any of its forms. */
extern void phone_failures_now(const Workspace *w, const char *phone, PhoneFailures *f);

#endif							/* OTP_FAILURES_H */
