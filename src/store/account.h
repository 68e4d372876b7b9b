/*-------------------------------------------------------------------------
 *
 * account.h
 *	  The rows of otp.provider_accounts, as they are configured.
 *
 * All functions need SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ACCOUNT_H
#define OTP_ACCOUNT_H

#include "nodes/pg_list.h"

typedef struct AccountRow
{
	int			account_id;		/* 0: new */
	char	   *settings;		/* JSON objects, never NULL */
	char	   *secrets;		/* in the clear: wipe it after use */
	List	   *secret_names;	/* of char *; only written */
} AccountRow;

/* Read an account by name, locked; an empty one when it is not there. Raises 22023 when it is another provider's. */
extern void account_lock(const char *name, const char *provider, AccountRow *account);

/* Write it back with its secrets sealed, as a new version; gives its id. */
extern int	account_store(const char *name, const char *provider, const AccountRow *account);

/* Have a workspace send its channel through an account. */
extern void account_use(int workspace_id, const char *channel, int account_id);

/* What the secrets of an account are sealed for. */
extern char *account_purpose(int account_id);

#endif							/* OTP_ACCOUNT_H */
