/*-------------------------------------------------------------------------
 *
 * attempts.h
 *	  Writing the ledger's counts back to their rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ATTEMPTS_H
#define OTP_ATTEMPTS_H

#include "utils/uuid.h"

#include "store/failures.h"

/*
 * Write counts of this database back, and drop the entries whose rows carry
 * them. Runs short transactions of its own: call outside of one. Never waits
 * for a row that somebody has locked; another round will do. An entry goes
 * one round after its count was written: false when there was none left.
 * used_up hears of every verification that has no attempt left, as committed;
 * it may be NULL.
 */
extern bool attempts_write_back(void (*used_up) (const pg_uuid_t *id));

#endif							/* OTP_ATTEMPTS_H */
