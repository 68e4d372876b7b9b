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

/*
 * Wrong guesses for a phone, over all its codes
 *
 * Neither total nor forgiven ever gets less: so of two counts of a phone, the
 * more is right, in whatever order they come. What is between the two
 * is the failures in a row. Where they begin is arbitrary.
 */
typedef struct PhoneCount
{
	TimestampTz since;			/* start of the 24 hours counted; 0: none */
	int32		failures;		/* since then */
	int64		total;
	int64		forgiven;		/* of the total: up to the last right guess
								 * that has committed */
	TimestampTz last_at;		/* the last one; 0: not known */
} PhoneCount;

/* What a workspace allows; 0 is no limit, but see max_in_row */
typedef struct PhonePolicy
{
	int			per_day;		/* failures in 24 h */
	int64		delay;			/* microseconds, doubled with each failure */
	int			delay_after;	/* failures in a row that cause none */
	int			max_in_row;		/* 0: phones are not counted at all */
} PhonePolicy;

/* No delay is longer */
#define PHONE_MAX_DELAY ((int64) 3600 * USECS_PER_SEC)

typedef struct LedgerEntry
{
	LedgerKey	key;
	int32		count;			/* verification: wrong guesses so far, at
								 * least the row's */
	int32		taken;			/* guesses counted and not yet compared */
	TransactionId created_xid;	/* that sent the verification */
	TimestampTz expires_at;		/* verification: no guess is right from then
								 * on */
	PhoneCount	phone;			/* phone: at least what its rows say */
} LedgerEntry;

/* What a guess is counted against, as read from the locked row */
typedef struct LedgerGuess
{
	int32		workspace_id;
	pg_uuid_t	id;
	const char *phone;			/* folded */
	TransactionId created_xid;
	TimestampTz expires_at;
	int			attempts;		/* the row's */
	int			max_attempts;
	PhoneCount	committed;		/* of the phone */
	PhonePolicy policy;
	uint32		phone_settles;	/* ledger_phone_settles, from before the two
								 * were read */
	TimestampTz now;
	/* set by ledger_take */
	bool		entry_made;
	bool		phone_entry_made;
	int64		phone_floor;	/* the total without this guess */
	/* set by ledger_right */
	int64		phone_total;	/* wrong ones before it */
	int			in_row;			/* of these, not forgiven */
} LedgerGuess;

typedef enum LedgerAnswer
{
	LEDGER_TAKEN,				/* counted: compare now */
	LEDGER_USED_UP,				/* no attempt left */
	LEDGER_COOLING,				/* the phone has failed too often: wait */
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

/* Take into a count what another one of the same phone says. */
extern void phone_count_merge(PhoneCount *count, const PhoneCount *other);

/* Leave out a window that is over. */
extern void phone_count_trim(PhoneCount *count, TimestampTz now);

/*
 * When a phone may be tried again: 0 at once, PG_INT64_MAX never, that is not
 * before somebody forgives its failures. The count is trimmed; taken of it
 * are not yet compared.
 */
extern TimestampTz phone_count_free_at(const PhoneCount *count, int taken,
									   const PhonePolicy *policy, TimestampTz now);

/* Merge what the ledger knows of a phone (folded) into a count. Gives how many of it are not yet compared. */
extern int	ledger_phone(int32 workspace_id, const char *phone, PhoneCount *count);

/*
 * Count a guess before it is compared. On LEDGER_TAKEN *attempts is the
 * count with this guess, and exactly one of ledger_wrong and ledger_right
 * must follow with nothing between that can raise. On LEDGER_COOLING
 * *retry_after is the seconds until the phone may be tried again, -1 when
 * waiting does not help.
 */
extern LedgerAnswer ledger_take(LedgerGuess *guess, int *attempts, int *retry_after);
extern void ledger_wrong(const LedgerGuess *guess);
extern void ledger_right(LedgerGuess *guess);

/* Cheap and without a lock: may the ledger hold anything of this database? */
extern bool ledger_has_entries(Oid database);

/* Copy up to max entries of a database, after skip others; gives their number. */
extern int	ledger_list(Oid database, LedgerEntry *entries, int max, int skip);

/*
 * Drop an entry of a verification whose count a committed row now carries, or
 * whose row is gone or expired for good (committed INT_MAX). Left alone when
 * it has grown since.
 */
extern void ledger_settle(const LedgerKey *key, int committed);

/* Drop an entry of a phone that committed rows now carry, as it was listed. Left alone when it has changed since. */
extern void ledger_settle_phone(const LedgerEntry *listed);

/* Drop an entry, and all it says: the extension was dropped. */
extern void ledger_forget(const LedgerKey *key);

/* Drop all entries of a database that was dropped. */
extern void ledger_forget_database(Oid database);

/* Entries in use, and how many fit. */
extern void ledger_usage(int *used, int *size);

#endif							/* OTP_LEDGER_H */
