/*-------------------------------------------------------------------------
 *
 * credit.h
 *	  What metered workspaces have left.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CREDIT_H
#define OTP_CREDIT_H

#include "store/workspace.h"

/*
 * Pay for a message in this transaction; gives what it cost, 0 for a
 * workspace that is not metered. Raises insufficient_credits. Called last,
 * because it locks a stripe until the end of the transaction. Needs
 * SPI_connect and the owner's scope.
 */
extern int	credit_take(const Workspace *w);

#endif							/* OTP_CREDIT_H */
