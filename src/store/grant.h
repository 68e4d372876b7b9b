/*-------------------------------------------------------------------------
 *
 * grant.h
 *	  The rows of otp.workspace_grants, and the privileges that go with them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_GRANT_H
#define OTP_GRANT_H

/*
 * Add or remove a grant. A role with any grant has EXECUTE on the verbs,
 * USAGE on schema otp and SELECT on the views for tenants; with the last
 * grant they go. Need SPI_connect and the owner's scope.
 */
extern void grant_add(int workspace_id, Oid role);
extern void grant_remove(int workspace_id, Oid role);

/* Remove all grants of a workspace. */
extern void grant_remove_all(int workspace_id);

#endif							/* OTP_GRANT_H */
