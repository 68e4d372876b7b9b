/*-------------------------------------------------------------------------
 *
 * attempts.h
 *	  Writing the ledger's counts back to their rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ATTEMPTS_H
#define OTP_ATTEMPTS_H

/*
 * Write counts of this database back, and drop the entries whose rows carry
 * them. Runs short transactions of its own: call outside of one. Never waits
 * for a row that somebody has locked; another round will do. An entry goes
 * one round after its count was written: false when there was none left.
 */
extern bool attempts_write_back(void);

#endif							/* OTP_ATTEMPTS_H */
