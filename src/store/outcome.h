/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  Which of many verifications have an outcome: a look that costs little.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STORE_OUTCOME_H
#define OTP_STORE_OUTCOME_H

#include "store/message.h"

/*
 * Tell of each verification whether its last send or resend may have an
 * outcome, because a provider has taken or refused it, or all is over, or the
 * row is gone. What it says no to has none. One statement per leaf, under the
 * latest snapshot; locks nothing. Needs a transaction, SPI_connect and the
 * owner's scope.
 */
extern void outcome_find(const MessageKey *keys, bool *found, int n);

#endif							/* OTP_STORE_OUTCOME_H */
