/*-------------------------------------------------------------------------
 *
 * job.h
 *	  Jobs from the outbox that are no messages: templates at Meta, test
 *	  webhooks, replays.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_JOB_H
#define OTP_JOB_H

#include "base/http.h"
#include "store/outbox.h"

/*
 * Take a job over; the row is copied, and its payload read in its turn. The
 * row of the outbox is deleted when it is done, or has failed for good: until
 * then, a successor does it again.
 */
extern void jobs_take(const OutboxRow *row);

/*
 * Do what is due: start requests, up to so many, and write results down, in
 * transactions of its own. Gives the time of the next call at the latest.
 * Raises nothing.
 */
extern TimestampTz jobs_turn(int slots, TimestampTz now);

/* Does it want to be called now? */
extern bool jobs_pending(TimestampTz now);

/* Take in an answer; the response's owner is a request of REQUEST_JOB. */
extern void jobs_judge(const HttpResponse *response, TimestampTz now);

/* How many requests of jobs are in flight */
extern int	jobs_in_flight(void);

#endif							/* OTP_JOB_H */
