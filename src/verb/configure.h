/*-------------------------------------------------------------------------
 *
 * configure.h
 *	  Checks of what provider accounts are set up with.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CONFIGURE_H
#define OTP_CONFIGURE_H

/*
 * What is wrong with a sender, in place of a provider's account's own: Meta's
 * phone_number_id; of Twilio a number, a name or a messaging service. NULL:
 * nothing. Needs no scope.
 */
extern const char *configure_sender_defect(const char *provider, const char *value);

#endif							/* OTP_CONFIGURE_H */
