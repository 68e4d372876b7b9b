/*-------------------------------------------------------------------------
 *
 * module.c
 *	  Can a workspace send over a channel right now?
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"

#include "base/roster.h"
#include "verb/verb.h"

/* Require a channel */
void
module_require(const Workspace *w, const char *channel, bool fallback_sms)
{
	bool		whatsapp = strcmp(channel, "whatsapp") == 0;
	bool		sms = !whatsapp || fallback_sms;
	int			retry_after = -1;

	/* Modules: switched on, and with a provider behind them */
	if (whatsapp && !w->whatsapp_enabled)
		error_raise(OTP_MODULE_INACTIVE, "WhatsApp is switched off for this workspace",
					"Set whatsapp_enabled in otp.workspaces.", -1, NULL);
	if (whatsapp && w->whatsapp_account == 0)
		error_raise(OTP_MODULE_INACTIVE, "no WhatsApp provider is set up for this workspace",
					"Set it up with otp.configure_meta, or try without one: otp.set_test_number.", -1, NULL);
	if (sms && !w->sms_enabled)
		error_raise(OTP_MODULE_INACTIVE, "SMS is switched off for this workspace",
					"Set sms_enabled in otp.workspaces.", -1, NULL);
	if (sms && w->sms_account == 0)
		error_raise(OTP_MODULE_INACTIVE, "no SMS provider is set up for this workspace",
					"Set it up with otp.configure_twilio, or try without one: otp.set_test_number.", -1, NULL);

	/* With a fallback, the sender goes the other way at once */
	if (whatsapp && !fallback_sms &&
		roster_breaker_open(MyDatabaseId, w->whatsapp_account, &retry_after))
		error_raise(OTP_META_API_UNAVAILABLE, "the WhatsApp API is unavailable",
					"Try again later, or ask for the fallback: fallback_sms => true. otp.providers tells the last error.",
					retry_after, NULL);
}
