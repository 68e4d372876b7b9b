/*-------------------------------------------------------------------------
 *
 * ledger.h
 *	  Guesses, counted where no rollback reaches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_LEDGER_H
#define OTP_LEDGER_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Longest E.164 number: "+" and 15 digits (ITU-T E.164, 6.2.1) */
#define LEDGER_PHONE_LENGTH 16

typedef enum LedgerKind
{
	LEDGER_VERIFICATION = 1,
	LEDGER_PHONE = 2
} LedgerKind;

/* Hashed as bytes: always zeroed first, see ledger.c */
typedef struct LedgerKey
{
	Oid			database;
	int32		workspace_id;
	int32		kind;
	uint8		what[16];		/* verification's id, or phone */
} LedgerKey;

typedef struct LedgerEntry
{
	LedgerKey	key;
	int32		count;			/* wrong guesses so far, at least the row's */
	int32		taken;			/* guesses counted and not yet compared */
	TransactionId created_xid;	/* that sent the verification */
	TimestampTz since;			/* phone: start of the window counted */
	TimestampTz expires_at;		/* verification: no guess is right from then
								 * on */
} LedgerEntry;

/* What a guess is counted against, as read from the locked row */
typedef struct LedgerGuess
{
	int32		workspace_id;
	pg_uuid_t	id;
	const char *phone;
	TransactionId created_xid;
	TimestampTz expires_at;
	int			attempts;		/* the row's */
	int			max_attempts;
	int			phone_failures; /* committed */
	TimestampTz phone_since;	/* start of their window, or 0 */
	int			phone_limit;	/* failures in 24 h, 0 is no limit */
	uint32		phone_settles;	/* ledger_phone_settles, from before the two
								 * were read */
	TimestampTz now;
	/* set by ledger_take */
	bool		entry_made;
	bool		phone_entry_made;
} LedgerGuess;

typedef enum LedgerAnswer
{
	LEDGER_TAKEN,				/* counted: compare now */
	LEDGER_USED_UP,				/* no attempt left */
	LEDGER_COOLING,				/* the phone has failed too often */
	LEDGER_STALE,				/* read the phone's failures again, and come
								 * back */
	LEDGER_FULL					/* no room to count, so no guess */
} LedgerAnswer;

extern Size ledger_shmem_size(void);
extern void ledger_shmem_init(void);

/* Wrong guesses of a verification, from the ledger or the row, whichever is more. */
extern int	ledger_attempts(int32 workspace_id, const pg_uuid_t *id, int attempts);

/*
 * How many counts of phones have moved from the ledger to their rows. What a
 * guess knows of its phone's row must have been read after this was asked:
 * by when it is used, the ledger may have let go of what the row said later.
 */
extern uint32 ledger_phone_settles(void);

/*
 * Count a guess before it is compared. On LEDGER_TAKEN *attempts is the
 * count with this guess, and exactly one of ledger_wrong and ledger_right
 * must follow with nothing between that can raise. On LEDGER_COOLING
 * *retry_after is the seconds until the phone may be tried again.
 */
extern LedgerAnswer ledger_take(LedgerGuess *guess, int *attempts, int *retry_after);
extern void ledger_wrong(const LedgerGuess *guess);
extern void ledger_right(const LedgerGuess *guess);

/* Cheap and without a lock: may the ledger hold anything of this database? */
extern bool ledger_has_entries(Oid database);

/* Copy up to max entries of a database, after skip others; gives their number. */
extern int	ledger_list(Oid database, LedgerEntry *entries, int max, int skip);

/*
 * Drop an entry whose count a committed row now carries, or whose row is
 * gone or expired for good (committed INT_MAX). Left alone when it has grown since.
 */
extern void ledger_settle(const LedgerKey *key, int committed, TimestampTz since);

/* Drop all entries of a database that was dropped. */
extern void ledger_forget_database(Oid database);

/* Entries in use, and how many fit. */
extern void ledger_usage(int *used, int *size);

#endif							/* OTP_LEDGER_H */
