/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  /healthz, /metrics and /openapi.json.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"

#include "base/guc.h"
#include "base/roster.h"
#include "listener/route.h"

/* Tell whether all is well */
void
monitor_health(Request *r)
{
	static const char well[] = "{\"status\":\"ok\"}";
	static const char ill[] = "{\"status\":\"no sender is running\"}";
	bool		ok = !otp_delivery || roster_sender_running(MyDatabaseId);

	if (ok)
		request_answer(r, 200, "application/json", well, sizeof(well) - 1);
	else
		request_answer(r, 503, "application/json", ill, sizeof(ill) - 1);
}

/* Tell figures */
void
monitor_metrics(Request *r)
{
	route_refuse(r, 404, "not_found", "there is nothing at this address", NULL, -1);
}

/* Tell what there is */
void
monitor_openapi(Request *r)
{
	route_refuse(r, 404, "not_found", "there is nothing at this address", NULL, -1);
}
