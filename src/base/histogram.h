/*-------------------------------------------------------------------------
 *
 * histogram.h
 *	  How long things took: counts in buckets that grow by a ninth each.
 *
 * A bucket's number is its place on a logarithmic scale, eight to an octave:
 * bucket 0 is up to a millisecond, bucket n from 2^((n-1)/8) to 2^(n/8)
 * milliseconds, the last one has everything above 2^20. So whatever is read
 * out of a bucket is right to a tenth, or a millisecond.
 *
 * Stored as an int4[] from the first bucket to the last that is not empty,
 * whose subscripts are the buckets' numbers.
 *
 * Nothing here needs a lock or a transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_HISTOGRAM_H
#define OTP_HISTOGRAM_H

#include "utils/array.h"

#define HISTOGRAM_PER_OCTAVE 8
#define HISTOGRAM_OCTAVES 20
#define HISTOGRAM_BUCKETS (HISTOGRAM_PER_OCTAVE * HISTOGRAM_OCTAVES + 1)

typedef struct Histogram
{
	int32		counts[HISTOGRAM_BUCKETS];
} Histogram;

/* Count a time; less than none is none. */
extern void histogram_note(Histogram *h, int64 microseconds);

/* The stored form, in the current memory context. */
extern ArrayType *histogram_store(const Histogram *h);

/* Add a stored one. Raises 22023 when it is none. */
extern void histogram_add(Histogram *h, const ArrayType *stored);

/*
 * The shortest time that so great a fraction of all does not exceed, in
 * seconds; false when there is none. Raises 22023 when it is no histogram.
 */
extern bool histogram_percentile(const ArrayType *stored, double fraction, double *seconds);

#endif							/* OTP_HISTOGRAM_H */
