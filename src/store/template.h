/*-------------------------------------------------------------------------
 *
 * template.h
 *	  The rows of otp.templates: what may be sent, and what Meta says of it.
 *
 * All functions need a transaction, SPI_connect and the owner's scope, and
 * leave the current memory context as it is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_TEMPLATE_H
#define OTP_TEMPLATE_H

#include "datatype/timestamp.h"

/* ---- for sending ---- */

/* Does the workspace have this template in this language, and is it usable? */
typedef enum TemplateState
{
	TEMPLATE_ABSENT,			/* no row */
	TEMPLATE_MISSING,			/* a row, but Meta has no such template */
	TEMPLATE_NOT_APPROVED,
	TEMPLATE_USABLE				/* approved, or not checked yet */
} TemplateState;

extern TemplateState template_state(int32 workspace_id, const char *name, const char *language);

/*
 * The template to send for the one that was asked for: itself, or its
 * approved variant whose text comes nearest to the life of the code, in
 * seconds. Sets *minutes, unless it is NULL, to what its text says, 0 when it
 * says nothing. Looks into a cache; what it gives is good until the next call
 * of this file.
 */
extern const char *template_variant(int32 workspace_id, const char *name, const char *language,
									int expires_in, int *minutes);

/* How a text would tell the life of a code, in minutes */
#define TEMPLATE_MINUTES(expires_in) (((expires_in) + 59) / 60)

/* ---- for otp.create_template and otp.sync_templates ---- */

/* The Meta account that a workspace's templates belong to; 0: none. */
extern int32 template_account(int32 workspace_id, bool *has_waba);

/*
 * Lock a row and tell its status, palloc'd; NULL when there is none. Sets
 * *is_variant when it stands in for another one.
 */
extern char *template_lock(int32 workspace_id, const char *name, const char *language,
						   bool *is_variant);

/* Note that a template is to be made at Meta; minutes 0 and variant_of NULL: none. */
extern void template_request(int32 workspace_id, const char *name, const char *language,
							 int minutes, const char *variant_of);

/* ---- for the sender ---- */

/* What Meta tells of a template; ASCII, status and category in lower case */
typedef struct TemplateNews
{
	const char *name;
	const char *language;
	const char *status;
	const char *template_id;	/* NULL: not told, here and below */
	const char *category;
	const char *reason;
	int			minutes;		/* 0: the text says nothing; -1: not told */
} TemplateNews;

/*
 * Take news in for all workspaces that use the account, and for workspace_id,
 * which gets rows for authentication templates that it does not have when add
 * is set. What was heard after the moment since is not overwritten. False
 * when somebody holds a lock on one of the rows: then nothing was done.
 */
extern bool template_note(int32 account_id, int32 workspace_id, const TemplateNews *news, int n,
						  TimestampTz since, bool add);

/*
 * Mark the rows of these workspaces of which nothing was heard since Meta's
 * whole list began to be read. False as template_note.
 */
extern bool template_note_missing(int32 account_id, int32 workspace_id, TimestampTz since);

/*
 * Note why a template could not be made: for good, or not yet. Its row is
 * left alone when something else was heard of it. False as template_note.
 */
extern bool template_note_trouble(int32 workspace_id, const char *name, const char *language,
								  const char *reason, bool final);

/*
 * Take in what a webhook of the account tells of a template, its status in
 * Meta's words. Waits for nobody: where a row is locked, a job is queued that
 * does it later. reason and template_id may be NULL.
 */
extern void template_note_status(int32 account_id, const char *name, const char *language,
								 const char *status, const char *reason, const char *template_id);

/* The same for that job. False as template_note. */
extern bool template_note_told(int32 account_id, const char *name, const char *language,
							   const char *status, const char *reason, const char *template_id);

#endif							/* OTP_TEMPLATE_H */
