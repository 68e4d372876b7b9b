/*-------------------------------------------------------------------------
 *
 * test_number.h
 *	  The rows of otp.test_numbers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_TEST_NUMBER_H
#define OTP_TEST_NUMBER_H

#include "datatype/timestamp.h"

typedef struct TestNumber
{
	char	   *code;			/* in the clear: wipe it after use */
	char	   *outcome;
} TestNumber;

/* Find a test number that is valid now. Needs SPI_connect and the owner's scope. */
extern bool test_number_find(int32 workspace_id, const char *phone, TimestampTz now, TestNumber *number);

/* Store a test number, in place of one that is there; code NULL removes it. */
extern void test_number_set(int32 workspace_id, const char *phone, const char *code,
							const char *outcome, TimestampTz valid_until, const char *set_by);

#endif							/* OTP_TEST_NUMBER_H */
