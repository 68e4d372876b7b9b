/*-------------------------------------------------------------------------
 *
 * meta_template.h
 *	  Authentication templates at Meta: create one, read the list.
 *
 * Strings are in UTF-8. As a channel, this knows nothing of the queue: what
 * follows from an answer is the job's business.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_META_TEMPLATE_H
#define OTP_META_TEMPLATE_H

#include "channel/channel.h"

/* Longest words taken from a list, with their NUL */
#define META_TEMPLATE_NAME_SIZE 513
#define META_TEMPLATE_WORD_SIZE 40

/* Longest cursor of a list's page */
#define META_TEMPLATE_CURSOR_SIZE 512

/* A template to be created; NULL and 0: left to Meta */
typedef struct MetaTemplateWish
{
	const char *name;
	const char *language;
	const char *button;			/* copy_code, one_tap or zero_tap */
	const char *button_text;
	const char *autofill_text;
	const char *package_name;
	const char *signature_hash;
	int			minutes;		/* the life of a code, as the text tells it */
	int			ttl;			/* seconds for delivery */
	bool		add_security_recommendation;
	bool		zero_tap_terms_accepted;
} MetaTemplateWish;

/* A template as Meta has it; status and category in lower case, "" is not told */
typedef struct MetaTemplate
{
	char		name[META_TEMPLATE_NAME_SIZE];
	char		language[META_TEMPLATE_WORD_SIZE];
	char		status[META_TEMPLATE_WORD_SIZE];
	char		category[META_TEMPLATE_WORD_SIZE];
	char		template_id[META_TEMPLATE_WORD_SIZE];
	char		reason[META_TEMPLATE_WORD_SIZE];
	int			minutes;		/* 0: the text says nothing; -1: not told */
} MetaTemplate;

typedef struct MetaTemplateAnswer
{
	Judgement	judgement;
	bool		exists;			/* not created, for it is there already */
	bool		too_large;		/* ask for fewer at once */
	int			ntemplates;
	MetaTemplate *templates;	/* palloc'd in the current context */
	char		next[META_TEMPLATE_CURSOR_SIZE];	/* "": that was all */
} MetaTemplateAnswer;

/*
 * Build the request that creates a template, or that reads a page of the
 * list: the templates of that name, or all when it is NULL, from a cursor or
 * the beginning when it is "". Both as Channel.build.
 */
extern bool meta_template_build_create(const ProviderAccount *account, const MetaTemplateWish *wish,
									   HttpRequest *out, char *error, size_t error_size);
extern bool meta_template_build_list(const ProviderAccount *account, const char *name,
									 const char *after, int limit,
									 HttpRequest *out, char *error, size_t error_size);

/*
 * Judge what came of it; also for requests that got no answer. A creation
 * that was accepted gives one template, with its name "".
 */
extern void meta_template_judge_create(const HttpResponse *response, MetaTemplateAnswer *out);
extern void meta_template_judge_list(const HttpResponse *response, MetaTemplateAnswer *out);

#endif							/* OTP_META_TEMPLATE_H */
