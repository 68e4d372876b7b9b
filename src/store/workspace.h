/*-------------------------------------------------------------------------
 *
 * workspace.h
 *	  Workspaces, their policy, and who may act for them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WORKSPACE_H
#define OTP_WORKSPACE_H

#include "datatype/timestamp.h"

/* Prefixes of phones; a count of -1 is no list at all */
typedef struct PrefixList
{
	int			count;
	char	  **prefixes;
} PrefixList;

/* What a list of countries is about */
typedef enum PrefixScope
{
	PREFIXES_ALL,
	PREFIXES_WHATSAPP,
	PREFIXES_SMS,
	PREFIX_SCOPES
} PrefixScope;

typedef enum GuardMode
{
	GUARD_OFF,
	GUARD_RECORD,
	GUARD_BLOCK
} GuardMode;

/* A row of otp.key_limits. Limits that are off are 0. */
typedef struct KeyLimit
{
	char	   *prefix;
	int			sends_per_hour;
	int			sends_per_day;
} KeyLimit;

/* A row of otp.workspaces. Limits that are off (NULL) are 0. */
typedef struct Workspace
{
	int32		workspace_id;
	char	   *name;
	char	   *default_template;
	char	   *default_channel;
	char	   *default_language;
	int			default_length;
	int			default_expires_in;
	bool		default_fallback_sms;
	bool		whatsapp_enabled;
	bool		sms_enabled;
	int32		whatsapp_account;	/* 0: none */
	int32		sms_account;
	int			sends_per_second;
	int			sends_per_phone_hour;
	int			sends_per_phone_day;
	int64		resend_cooldown;	/* microseconds */
	int			max_attempts;
	int			failures_per_phone_day;
	int			min_code_length;
	int			max_expires_in;
	bool		require_context;
	PrefixList	allowed[PREFIX_SCOPES];
	PrefixList	denied[PREFIX_SCOPES];
	bool		suspended;
	int			sends_burst;
	int64		failure_delay;	/* microseconds */
	int			failure_delay_after;
	int			max_failures_in_row;
	bool		credits_metered;
	int			fallback_credits;
	GuardMode	guard_mode;
	PrefixList	guard_exempt;
	char	   *policy_function;	/* NULL: none */
	int			policy_timeout_ms;
	bool		has_test_numbers;
	int			key_limit_count;
	KeyLimit   *key_limits;
} Workspace;

/*
 * The workspace that the caller acts for: the named one; else the one of
 * otp.workspace; else the only one granted. Needs SPI_connect and the owner's
 * scope, with caller the role from before it. Raises 42501 when it is not
 * granted or does not exist, 22023 when several are and none is chosen. What
 * it gives is the cache's own, good until the next call of this file.
 */
extern const Workspace *workspace_acting(Oid caller, const char *name);

/*
 * Let the holder of an API key act: until leave, or the end of this
 * subtransaction, the extension's owner as caller is granted the key's
 * workspace and no other. Whoever else is called meanwhile, as a policy
 * function is, acts as before. Needs the owner's scope.
 */
extern void workspace_enter_key(int32 workspace_id, int32 key_id);
extern void workspace_leave_key(void);

/* The key that acts for a caller; 0: none. */
extern int32 workspace_acting_key(Oid caller);

/* Raise workspace_suspended for a workspace that may not send. */
extern void workspace_require_active(const Workspace *w);

/*
 * The ids of all workspaces granted to the caller: an int4[] for "= ANY".
 * Raises 42501 when there is none, unless none_ok.
 */
extern Datum workspace_granted(Oid caller, bool none_ok);

/* A workspace by id that is known to be granted; NULL when it is gone. */
extern const Workspace *workspace_by_id(int32 workspace_id);

/* The same, for whoever has called nothing else of this file before. */
extern const Workspace *workspace_read(int32 workspace_id);

/*
 * The workspace a configuring function names; NULL is the default one.
 * Raises 42704 when there is none. For the extension's owner only.
 */
extern const Workspace *workspace_named(const char *name);

/*
 * What was given so far stays good until the end of the transaction, although
 * others call this file: for whoever is about to run code of somebody else's.
 */
extern void workspace_hold(void);

/* Have all sessions read the configuration again, once this transaction commits. */
extern void workspace_invalidate(Oid relid);

#endif							/* OTP_WORKSPACE_H */
