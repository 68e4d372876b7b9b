/*-------------------------------------------------------------------------
 *
 * histogram.c
 *	  How long things took: counts in buckets that grow by a ninth each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/int.h"

#include "base/error.h"
#include "base/histogram.h"

/* Count a time */
void
histogram_note(Histogram *h, int64 microseconds)
{
	int			bucket = 0;

	if (microseconds > 1000)
		bucket = 1 + (int) (HISTOGRAM_PER_OCTAVE * log2(microseconds / 1000.0));
	bucket = Min(bucket, HISTOGRAM_BUCKETS - 1);
	if (h->counts[bucket] < PG_INT32_MAX)
		h->counts[bucket]++;
}

/* Make the stored form */
ArrayType *
histogram_store(const Histogram *h)
{
	int			first = 0;
	int			last = HISTOGRAM_BUCKETS - 1;
	int			n;
	ArrayType  *stored;
	Size		size;

	while (last >= 0 && h->counts[last] == 0)
		last--;
	if (last < 0)
		return construct_empty_array(INT4OID);
	while (h->counts[first] == 0)
		first++;

	n = last - first + 1;
	size = ARR_OVERHEAD_NONULLS(1) + n * sizeof(int32);
	stored = palloc0(size);
	SET_VARSIZE(stored, size);
	stored->ndim = 1;
	stored->elemtype = INT4OID;
	ARR_DIMS(stored)[0] = n;
	ARR_LBOUND(stored)[0] = first;
	memcpy(ARR_DATA_PTR(stored), h->counts + first, n * sizeof(int32));
	return stored;
}

/* Take a stored one apart; gives the number of its buckets */
static int
open_stored(const ArrayType *stored, const int32 **counts, int *first)
{
	int			n = 0;

	*counts = NULL;
	*first = 0;
	if (ARR_NDIM(stored) == 1)
	{
		n = ARR_DIMS(stored)[0];
		*first = ARR_LBOUND(stored)[0];
		*counts = (const int32 *) ARR_DATA_PTR(stored);
	}
	if (ARR_NDIM(stored) > 1 || ARR_ELEMTYPE(stored) != INT4OID || array_contains_nulls((ArrayType *) stored) ||
		*first < 0 || n > HISTOGRAM_BUCKETS || *first > HISTOGRAM_BUCKETS - n)
		error_invalid_argument("this is not a histogram", "Give a histogram of otp.stats_hours.");
	return n;
}

/* Add a stored one */
void
histogram_add(Histogram *h, const ArrayType *stored)
{
	const int32 *counts;
	int			first;
	int			n = open_stored(stored, &counts, &first);

	for (int i = 0; i < n; i++)
	{
		int32	   *count = &h->counts[first + i];

		/* So full a bucket is not worth an error */
		if (pg_add_s32_overflow(*count, counts[i], count))
			*count = PG_INT32_MAX;
	}
}

/* Read a percentile */
bool
histogram_percentile(const ArrayType *stored, double fraction, double *seconds)
{
	const int32 *counts;
	int			first;
	int			n = open_stored(stored, &counts, &first);
	int64		all = 0;
	int64		before = 0;
	int64		rank;

	for (int i = 0; i < n; i++)
		all += Max(counts[i], 0);
	if (all == 0)
		return false;

	/* The time of this rank, as percentile_disc would choose it */
	rank = (int64) ceil(fraction * all);
	rank = Min(Max(rank, 1), all);
	for (int i = 0; i < n; i++)
	{
		int64		count = Max(counts[i], 0);

		if (before + count >= rank)
		{
			/* Those of a bucket are taken to lie evenly on the scale */
			double		within = (rank - before - 0.5) / count;
			int			bucket = first + i;
			double		ms;

			ms = bucket == 0 ? within : exp2((bucket - 1 + within) / HISTOGRAM_PER_OCTAVE);
			*seconds = rint(ms * 1000.0) / 1e6;
			return true;
		}
		before += count;
	}
	return false;
}
