/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The settings that our workers run with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SETTINGS_H
#define OTP_SETTINGS_H

/* Override what ALTER DATABASE or ALTER ROLE may impose on a worker. No statement waits longer for a lock. */
extern void settings_impose(const char *lock_timeout);

#endif							/* OTP_SETTINGS_H */
