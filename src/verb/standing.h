/*-------------------------------------------------------------------------
 *
 * standing.h
 *	  Where a verification stands, by its row and those of its messages.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STANDING_H
#define OTP_STANDING_H

#include "verb/verb.h"

/* What has come of the last send or resend */
typedef enum SendOutcome
{
	SEND_UNDER_WAY,				/* or nobody will ever know */
	SEND_ACCEPTED,				/* by a provider */
	SEND_FAILED					/* for good; another message may stand */
} SendOutcome;

/* A verification and what became of its messages */
typedef struct Standing
{
	Verification v;
	int			attempts;
	Life		life;
	TimestampTz ended_at;
	const char *error;
	char	   *error_detail;
	const char *channel;
	const char *message_id;
	TimestampTz sent_at;
	TimestampTz delivered_at;
	bool		fallback_used;
	bool		has_outcome;	/* its first message was accepted, or all is
								 * over */

	/* Of the last send or resend alone */
	SendOutcome outcome;
	const char *outcome_channel;	/* of the message that the outcome is of */
	const char *outcome_message_id; /* NULL: none */
} Standing;

/*
 * Look a verification up in the given workspaces (an int4[]); false when it is
 * not there. latest true reads what is committed now, whatever the
 * transaction's snapshot. Needs SPI_connect and the owner's scope; strings
 * outlive SPI_finish.
 */
extern bool standing_look(const pg_uuid_t *id, bool latest, Datum workspaces, Standing *s);

#endif							/* OTP_STANDING_H */
