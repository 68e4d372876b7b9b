/*-------------------------------------------------------------------------
 *
 * audit.h
 *	  The rows of otp.audit_entries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STORE_AUDIT_H
#define OTP_STORE_AUDIT_H

/*
 * Set by a process whose changes are not of the configuration, but what it
 * has heard from elsewhere: the sender.
 */
extern bool audit_off;

/*
 * Add an entry. details is a JSON object; a workspace_id of 0 is none. Needs
 * SPI_connect and the owner's scope.
 */
extern void audit_add(const char *role, const char *action, int32 workspace_id,
					  const char *object, char *details);

/* What the audit shows of a phone: its ends; of what is none, nothing. */
extern char *audit_mask_phone(const char *phone);

#endif							/* OTP_STORE_AUDIT_H */
