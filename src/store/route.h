/*-------------------------------------------------------------------------
 *
 * route.h
 *	  Which provider account carries a workspace's messages.
 *
 * All functions need a transaction, SPI_connect, the owner's scope and an
 * active snapshot, unless they say otherwise. They leave the current memory
 * context as it is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ROUTE_H
#define OTP_ROUTE_H

/* What the sender needs of a row of otp.workspaces */
typedef struct Route
{
	int32		workspace_id;
	int32		whatsapp_account;	/* 0: none, or the module is off */
	int32		sms_account;
	char	   *whatsapp_sender;	/* in place of the account's; NULL: that */
	char	   *sms_sender;
	int64		fallback_us;	/* to SMS, without a receipt; 0: never */
	bool		prices_fallback;	/* it costs credits */
	bool		refunds;		/* what has failed costs none */
	char	   *app_name;
} Route;

/* Read a workspace's; false when it is gone. Strings in the current context. */
extern bool route_load(int32 workspace_id, Route *route);

/* A row of otp.provider_accounts; strings in the current context */
typedef struct RouteAccount
{
	int32		account_id;
	int64		version;
	char	   *name;
	char	   *provider;
	char	   *settings;		/* JSON */
	bytea	   *secrets;		/* sealed; NULL: none */
	int			key_id;
	int			nreceipts_from; /* numbers that receipts have come from */
	char	  **receipts_from;
} RouteAccount;

/* Read an account, unless it is still of this version; false when it is gone. */
extern bool route_load_account(int32 account_id, int64 known_version,
							   RouteAccount *account, bool *changed);

/* Note that receipts of a sending number have been seen; false when somebody has the row. */
extern bool route_note_receipts(int32 account_id, const char *from);

/* The ids of the workspaces that use an account: an int4[]. */
extern Datum route_workspaces(int32 account_id, int *count);

/*
 * May the configuration have changed since the last call? Needs nothing, but
 * a transaction must have begun since the change.
 */
extern bool route_changed(void);

#endif							/* OTP_ROUTE_H */
