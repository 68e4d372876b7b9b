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
	int			exclusive_to;	/* a workspace's id; 0: shared */
} AccountRow;

/* Read an account by name, locked; an empty one when it is not there. Raises 22023 when it is another provider's. */
extern void account_lock(const char *name, const char *provider, AccountRow *account);

/* Write it back with its secrets sealed, as a new version; gives its id. */
extern int	account_store(const char *name, const char *provider, const AccountRow *account);

/* Have a workspace send its channel through an account; another one takes its own sender away. */
extern void account_use(int workspace_id, const char *channel, int account_id);

/* What otp.use_provider has to know of an account */
typedef struct AccountUse
{
	int			account_id;
	char	   *provider;
	int			exclusive_to;	/* a workspace's id; 0: shared */
} AccountUse;

/* Find an account by name and lock it; false when there is none. */
extern bool account_lock_use(const char *name, AccountUse *use);

/* Count the workspaces, other than this one, that use an account. */
extern int	account_count_others(int account_id, int workspace_id);

/* Have a workspace send with a sender of its own through its account; NULL: the account's. */
extern void account_set_sender(int workspace_id, const char *channel, const char *sender);

/* Make an account a workspace's own, or (0) shared. */
extern void account_set_exclusive(int account_id, int workspace_id);

/* Raise 55006 when an account is another workspace's own. */
extern void account_require_free(const char *name, int exclusive_to, int workspace_id);

/* What the secrets of an account are sealed for. */
extern char *account_purpose(int account_id);

/* What is needed to take receipts for an account; strings are NULL when not set */
typedef struct ReceiptAccount
{
	int			account_id;
	char	   *name;
	char	   *provider;
	char	   *sender;			/* phone_number_id or account_sid */
	char	   *waba_id;
	char	   *verify_token;
	char	   *secret;			/* that signs receipts: app secret or auth
								 * token */
	char	   *previous_secret;
} ReceiptAccount;

/*
 * Find an account by name, as it is in force now; NULL when this provider has
 * none of that name. The session keeps it: it is good until the next call.
 * Works on a standby. Raises key_unavailable, and XX001 for secrets that do
 * not open.
 */
extern const ReceiptAccount *account_for_receipts(const char *name, const char *provider);

/*
 * Find the accounts of the same app of Meta's as one that account_for_receipts
 * gave: whose secret, now or before, is this one, and whose waba_id is that id,
 * or else a sending number, be it of the account itself or of a workspace that
 * uses it. That one is among them in the second case only. Gives their number,
 * up to max; they are good as long as that one is. Raises what
 * account_for_receipts raises: it is better that the provider comes again than
 * that a receipt is lost.
 */
extern int	account_siblings(const ReceiptAccount *account, const char *secret, bool waba, const char *id,
							 const ReceiptAccount **siblings, int max);

/*
 * Read an account without any use. For the refusal of one that is there, so
 * that it takes as long as that of one that is not, which is never kept.
 */
extern void account_read_in_vain(const char *name, const char *provider);

#endif							/* OTP_ACCOUNT_H */
