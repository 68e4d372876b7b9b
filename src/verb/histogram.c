/*-------------------------------------------------------------------------
 *
 * histogram.c
 *	  Histograms in SQL: sums and percentiles, for the view on statistics.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <math.h>

#include "fmgr.h"

#include "base/error.h"
#include "base/histogram.h"

EXPORTED_FUNCTION(otp_histogram_add);
EXPORTED_FUNCTION(otp_histogram_percentile);

/* Add two histograms */
Datum
otp_histogram_add(PG_FUNCTION_ARGS)
{
	Histogram	sum;

	memset(&sum, 0, sizeof(sum));
	histogram_add(&sum, PG_GETARG_ARRAYTYPE_P(0));
	histogram_add(&sum, PG_GETARG_ARRAYTYPE_P(1));
	PG_RETURN_ARRAYTYPE_P(histogram_store(&sum));
}

/* Give a percentile */
Datum
otp_histogram_percentile(PG_FUNCTION_ARGS)
{
	double		fraction = PG_GETARG_FLOAT8(1);
	double		seconds;

	if (isnan(fraction) || fraction < 0 || fraction > 1)
		error_invalid_argument("this is not a fraction", "Give one from 0 to 1: 0.95 for the 95th percentile.");
	if (!histogram_percentile(PG_GETARG_ARRAYTYPE_P(0), fraction, &seconds))
		PG_RETURN_NULL();
	PG_RETURN_FLOAT8(seconds);
}
