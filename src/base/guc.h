/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  The extension's settings; otp.c defines and documents them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_GUC_H
#define OTP_GUC_H

#define MINUTES_PER_DAY 1440

extern char *otp_workspace;		/* acting workspace of a session */
extern bool otp_delivery;		/* off: this server sends nothing */
extern char *otp_key_file;
extern char *otp_https_proxy;
extern char *otp_ca_file;
extern bool otp_allow_insecure_http;
extern bool otp_allow_private_addresses;
extern int	otp_max_databases;
extern int	otp_max_in_flight;
extern int	otp_ledger_size;
extern int	otp_guard_size;
extern int	otp_retention;		/* minutes that history is kept */
extern bool otp_allow_private_webhooks;

#endif							/* OTP_GUC_H */
