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

/* The HTTP listener; may differ by database */
extern int	otp_http_port;		/* 0: off */
extern char *otp_http_listen_addresses;
extern int	otp_http_workers;
extern char *otp_http_cert_file;
extern char *otp_http_key_file;
extern int	otp_http_max_connections;	/* of one worker */
extern int	otp_http_max_body;	/* kB */
extern int	otp_http_timeout;	/* ms for a request to come, and for its
								 * answer to go */
extern int	otp_http_send_wait; /* ms */
extern char *otp_http_public_url;

#endif							/* OTP_GUC_H */
