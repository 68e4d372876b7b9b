/*-------------------------------------------------------------------------
 *
 * owner.h
 *	  Running as the owner of the extension, whoever calls.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_OWNER_H
#define OTP_OWNER_H

typedef struct OwnerScope
{
	Oid			userid;			/* who called */
	int			sec_context;
	int			guc_level;
	int			depth;			/* of the scopes around it */
} OwnerScope;

/*
 * Look whether this database has the extension, and who owns it. Needs a
 * transaction. The answer is kept until pg_extension may have changed.
 */
extern bool owner_lookup(void);

/* The extension's owner; raises 55000 where the extension is not installed. */
extern Oid	owner_id(void);

/*
 * Become the extension's owner, with search_path pinned to pg_catalog and
 * pg_temp last. An error in between needs no leave: the end of the
 * (sub)transaction restores both.
 */
extern void owner_enter(OwnerScope *scope);
extern void owner_leave(const OwnerScope *scope);

/*
 * On whose behalf we are working: the role that called the function whose
 * owner's scope this is, or, outside of all scopes, the current user.
 */
extern Oid	owner_caller(void);

/* Raise 42501 unless the caller has the privileges of the extension's owner. */
extern void owner_require(const char *function);

#endif							/* OTP_OWNER_H */
