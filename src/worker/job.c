/*-------------------------------------------------------------------------
 *
 * job.c
 *	  Do jobs of the outbox.
 *
 * A job goes from step to step: each is a short transaction of its own, which
 * writes down what an answer says, or makes the next request. The request is
 * started when the transaction has ended, its answer judged when it comes.
 *
 *		create a template: ask; is it there already, look it up
 *		read the list: page after page; then what was on none is missing
 *		what a webhook told of a template: write it down
 *		anything else is the webhooks'
 *
 * Nothing but the memory of the running sender knows how far a job is: the
 * next sender begins it again, which does no harm. For the same reason no
 * step waits for the disk.
 *
 * Codes come first, and there may be any number of jobs: of those that nobody
 * has looked at yet little more than their place in the outbox is in memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/json.h"
#include "channel/meta_template.h"
#include "store/template.h"
#include "worker/job.h"
#include "worker/sender.h"
#include "worker/webhook.h"

/* Codes come first: so many requests at a time, and so many steps in a turn when there are none */
#define MAX_IN_FLIGHT 4
#define STEPS_PER_TURN 4

/* Most jobs that have been begun, some kB each: those that wait for Meta are among them. */
#define MAX_BEGUN 4000

/* Nobody waits at a login form for this. */
#define REQUEST_TIMEOUT_MS 30000

/* Between tries: 1 s, 2 s, 4 s, ... five minutes, each give or take a quarter */
#define RETRY_MS 1000
#define RETRY_MAX_MS 300000

/* A row is locked, or a step has failed: try again after this long. */
#define LOCKED_LOOK_MS 1000

/* The key file is not there: look again after this long. */
#define PROBLEM_LOOK_MS 5000

/* Steps in a row that may fail, for whatever reason, before a job is dropped */
#define MAX_ERRORS 10

/* Templates on a page; fewer when the answer gets too large; pages in all */
#define PAGE_SIZE 100
#define PAGE_SHRINK 4
#define MAX_PAGES 1000

/* With nothing to do, or no free place, be called again after this long. */
#define IDLE_MS 60000
#define FULL_LOOK_MS 100

typedef enum JobKind
{
	JOB_UNREAD,
	JOB_CREATE_TEMPLATE,
	JOB_SYNC_TEMPLATES,
	JOB_NOTE_TEMPLATE,
	JOB_OTHER
} JobKind;

typedef enum JobState
{
	JOB_WAITING,				/* for its time, or for a free place */
	JOB_IN_FLIGHT,
	JOB_ANSWERED				/* the answer is to be written */
} JobState;

/* A job that has not been begun */
typedef struct NewJob
{
	dlist_node	node;
	OutboxRow	row;
} NewJob;

typedef struct Job
{
	RequestKind request_kind;	/* first: the HTTP client hands it back */
	JobState	state;
	pairingheap_node node;		/* of ready or wanting, unless in flight */
	MemoryContext context;		/* of the job and all it has */
	OutboxRow	row;
	char	   *payload;		/* in server encoding; NULL: to be read */
	TimestampTz due_at;
	int			tries;			/* in a row that are to be repeated */
	int			errors;			/* steps in a row that failed */

	/* once it was read */
	JobKind		kind;
	json_t	   *spec;
	bool		look_up;		/* created before: read its status */

	/* of the list */
	char		after[META_TEMPLATE_CURSOR_SIZE];
	int			page_size;
	int			pages;
	TimestampTz listing_since;	/* the first page was asked for */

	/* of the request */
	int32		account_id;
	TimestampTz started_at;
	MemoryContext answer_context;
	MetaTemplateAnswer answer;
} Job;

/* What a step has decided, carried out when its transaction has committed */
typedef enum StepEnd
{
	STEP_AGAIN,					/* the same, after a while */
	STEP_NEXT,					/* the answer is written: the next request */
	STEP_START,					/* the request */
	STEP_DONE
} StepEnd;

typedef struct Step
{
	Job		   *job;
	TimestampTz now;
	bool		place;			/* for a request */
	bool		begun;			/* the transaction has */
	bool		webhooks;		/* were told to do it */
	StepEnd		end;
	TimestampTz due_at;			/* of the next step */
	HttpRequest request;
} Step;

/* Order jobs by time, then by age */
static int
compare_jobs(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Job  *left = pairingheap_const_container(Job, node, a);
	const Job  *right = pairingheap_const_container(Job, node, b);

	if (left->due_at != right->due_at)
		return left->due_at < right->due_at ? 1 : -1;
	return memcmp(&right->row.id, &left->row.id, UUID_LEN);
}

/* Those that have not been begun, by age */
static dlist_head new_jobs = DLIST_STATIC_INIT(new_jobs);
static int	nnew = 0;

/* Those that have: their next step needs no place, or wants to make a request */
static pairingheap ready = {compare_jobs, NULL, NULL};
static pairingheap wanting = {compare_jobs, NULL, NULL};
static int	nbegun = 0;
static int	in_flight = 0;
static TimestampTz full_until = 0;	/* no request before */
static TimestampTz no_step_before = 0;
static MemoryContext step_context = NULL;

/* ---- the lists ---- */

/* Take a job over */
void
jobs_take(const OutboxRow *row)
{
	NewJob	   *job = MemoryContextAlloc(TopMemoryContext, sizeof(NewJob));

	job->row = *row;
	dlist_push_tail(&new_jobs, &job->node);
	nnew++;
}

/* Give the first of the new jobs, if one may be begun */
static NewJob *
first_new(void)
{
	return nnew == 0 || nbegun >= MAX_BEGUN ? NULL : dlist_container(NewJob, node, dlist_head_node(&new_jobs));
}

/* Give the first of a heap; NULL when there is none */
static Job *
first_of(pairingheap *heap)
{
	return pairingheap_is_empty(heap) ? NULL : pairingheap_container(Job, node, pairingheap_first(heap));
}

/* Begin a new job */
static Job *
begin_job(NewJob *first)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "otp job", ALLOCSET_SMALL_SIZES);
	Job		   *job = MemoryContextAllocZero(context, sizeof(Job));

	job->request_kind = REQUEST_JOB;
	job->context = context;
	job->row = first->row;
	job->page_size = PAGE_SIZE;
	job->due_at = first->row.due_at;
	nbegun++;

	dlist_delete(&first->node);
	pfree(first);
	nnew--;
	return job;
}

/* Put a job to those that wait */
static void
job_wait(Job *job)
{
	bool		request = job->state == JOB_WAITING &&
	(job->kind == JOB_CREATE_TEMPLATE || job->kind == JOB_SYNC_TEMPLATES);

	pairingheap_add(request ? &wanting : &ready, &job->node);
}

/* Forget a job that is in no heap */
static void
job_free(Job *job)
{
	json_decref(job->spec);
	MemoryContextDelete(job->context);
	nbegun--;
}

/* Take the job whose turn it is; NULL: none is due */
static Job *
next_job(bool place, TimestampTz now)
{
	Job		   *job = first_of(&ready);
	Job		   *other = place ? first_of(&wanting) : NULL;
	NewJob	   *first = first_new();

	if (job == NULL || (other != NULL && other->due_at < job->due_at))
		job = other;
	if (first != NULL && (job == NULL || job->due_at > now || first->row.due_at < job->due_at))
		return begin_job(first);
	if (job == NULL || job->due_at > now)
		return NULL;
	pairingheap_remove(job == other ? &wanting : &ready, &job->node);
	return job;
}

/* When is the next step? */
static TimestampTz
next_time(void)
{
	Job		   *job = first_of(&ready);
	Job		   *other = first_of(&wanting);
	TimestampTz at = job != NULL ? job->due_at : DT_NOEND;

	if (other != NULL)
		at = Min(at, Max(other->due_at, full_until));
	if (first_new() != NULL)
		at = 0;
	return Max(at, no_step_before);
}

/* ---- steps ---- */

/* Decide: later */
static void
put_off(Step *step, StepEnd end, long delay_ms)
{
	step->end = end;
	step->due_at = TimestampTzPlusMilliseconds(step->now, delay_ms);
}

/* How long to wait after so many tries */
static long
retry_delay(int tries, int min_delay_ms)
{
	long		delay = RETRY_MS;

	for (int i = 0; i < tries && delay < RETRY_MAX_MS; i++)
		delay *= 2;
	delay = (long) (Min(delay, RETRY_MAX_MS) * (0.75 + 0.5 * compat_random()));

	/* A provider's own delay is the least; the jitter comes on top */
	if (delay < min_delay_ms)
		delay = min_delay_ms + (long) (compat_random() * Min(min_delay_ms / 4, 1000));
	return delay;
}

/* Give a member of the job's object in server encoding; NULL when there is none */
static char *
spec_text(const Job *job, const char *key)
{
	const char *text = channel_string(job->spec, key);

	return text == NULL ? NULL : pg_any_to_server(text, strlen(text), PG_UTF8);
}

/* The same for a number; 0 when there is none */
static int
spec_int(const Job *job, const char *key)
{
	int64		value = 0;

	(void) json_member_int(job->spec, key, 0, PG_INT32_MAX, &value);
	return (int) value;
}

/* Read what a job is to do; false when its row is gone */
static bool
read_payload(Job *job)
{
	static const struct
	{
		const char *name;
		JobKind		kind;
	}			kinds[] = {
		{"create_template", JOB_CREATE_TEMPLATE},
		{"sync_templates", JOB_SYNC_TEMPLATES},
		{"note_template", JOB_NOTE_TEMPLATE}
	};
	const char *name;

	if (job->payload == NULL)
	{
		char	   *payload = outbox_payload(&job->row);

		if (payload == NULL)
			return false;
		job->payload = MemoryContextStrdup(job->context, payload);
	}
	if (job->spec == NULL)
	{
		char	   *utf8 = pg_server_to_any(job->payload, strlen(job->payload), PG_UTF8);

		job->spec = json_from_text(utf8, strlen(utf8));
	}
	name = channel_string(job->spec, "do");
	job->kind = JOB_OTHER;
	for (int i = 0; name != NULL && i < lengthof(kinds); i++)
	{
		if (strcmp(name, kinds[i].name) == 0)
			job->kind = kinds[i].kind;
	}
	return true;
}

/* Note why a job cannot be done: for good, or not yet */
static void
note_trouble(Step *step, const char *why, bool final)
{
	Job		   *job = step->job;

	step->end = STEP_DONE;
	if (job->kind == JOB_CREATE_TEMPLATE)
	{
		if (!template_note_trouble(job->row.workspace_id, spec_text(job, "name"), spec_text(job, "language"),
								   why, final))
			put_off(step, STEP_AGAIN, LOCKED_LOOK_MS);
	}
	else if (final)
	{
		char		message[ROSTER_ERROR_SIZE];

		snprintf(message, sizeof(message), "the templates of workspace %d could not be read: %s",
				 job->row.workspace_id, why);
		roster_report_error(message);
		ereport(LOG,
				(errmsg("could not read the templates of workspace %d: %s", job->row.workspace_id, why)));
	}
}

/* Make the request of a job with templates */
static void
make_request(Step *step)
{
	Job		   *job = step->job;
	bool		has_waba;
	int32		account_id = template_account(job->row.workspace_id, &has_waba);
	Account    *account;
	char		error[HTTP_ERROR_SIZE] = "";
	bool		built;

	accounts_refresh();
	account = account_id == 0 ? NULL : account_get(account_id, step->now);
	if (account == NULL)
	{
		note_trouble(step, "the workspace has no Meta account", true);
		return;
	}
	if (account->problem != NULL)
	{
		if (account->problem_passes)
			put_off(step, STEP_AGAIN, PROBLEM_LOOK_MS);
		else
			note_trouble(step, account->problem, true);
		return;
	}

	if (job->kind == JOB_CREATE_TEMPLATE && !job->look_up)
	{
		MetaTemplateWish wish = {
			.name = channel_string(job->spec, "name"),
			.language = channel_string(job->spec, "language"),
			.button = channel_string(job->spec, "button"),
			.button_text = channel_string(job->spec, "button_text"),
			.autofill_text = channel_string(job->spec, "autofill_text"),
			.package_name = channel_string(job->spec, "package_name"),
			.signature_hash = channel_string(job->spec, "signature_hash"),
			.minutes = spec_int(job, "code_expiration_minutes"),
			.ttl = spec_int(job, "message_send_ttl_seconds"),
			.add_security_recommendation = json_is_true(json_object_get(job->spec, "add_security_recommendation")),
			.zero_tap_terms_accepted = json_is_true(json_object_get(job->spec, "zero_tap_terms_accepted"))
		};

		built = meta_template_build_create(&account->provider, &wish, &step->request, error, sizeof(error));
	}
	else
		built = meta_template_build_list(&account->provider, job->look_up ? channel_string(job->spec, "name") : NULL,
										 job->after, job->page_size, &step->request, error, sizeof(error));
	if (!built)
	{
		note_trouble(step, psprintf("no request could be made: %s", error), true);
		return;
	}
	step->request.timeout_ms = REQUEST_TIMEOUT_MS;
	step->request.owner = job;

	/* Plain http is for tests, and whoever allows it means this one address */
	step->request.allow_insecure = otp_allow_insecure_http &&
		strncmp(step->request.url, "http://", 7) == 0;
	job->account_id = account_id;
	step->end = STEP_START;
}

/* Hand Meta's news on */
static TemplateNews
make_news(const MetaTemplate *t, const char *name, const char *language)
{
	TemplateNews news = {
		.name = name,
		.language = language,
		.status = t->status,
		.template_id = t->template_id[0] != '\0' ? t->template_id : NULL,
		.category = t->category[0] != '\0' ? t->category : NULL,
		.reason = t->reason[0] != '\0' ? t->reason : NULL,
		.minutes = t->minutes
	};

	return news;
}

/* Write what Meta says of the template that was to be created */
static void
write_created(Step *step)
{
	Job		   *job = step->job;
	char	   *name = spec_text(job, "name");
	char	   *language = spec_text(job, "language");

	for (int i = 0; i < job->answer.ntemplates; i++)
	{
		MetaTemplate *t = &job->answer.templates[i];
		TemplateNews news = make_news(t, name, language);

		if (job->look_up && (strcmp(t->name, name) != 0 || strcmp(t->language, language) != 0))
			continue;
		step->end = STEP_DONE;
		if (!template_note(job->account_id, job->row.workspace_id, &news, 1, job->started_at, false))
			put_off(step, STEP_AGAIN, LOCKED_LOOK_MS);
		return;
	}
	if (job->answer.next[0] != '\0' && job->pages < MAX_PAGES)
		put_off(step, STEP_NEXT, 0);
	else
		note_trouble(step, "Meta says that it is there already, but does not have it in its list", true);
}

/* Write a page of the list */
static void
write_page(Step *step)
{
	Job		   *job = step->job;
	int			n = job->answer.ntemplates;
	TemplateNews *news = palloc((n + 1) * sizeof(TemplateNews));

	for (int i = 0; i < n; i++)
		news[i] = make_news(&job->answer.templates[i], job->answer.templates[i].name,
							job->answer.templates[i].language);
	if (!template_note(job->account_id, job->row.workspace_id, news, n, job->started_at, true))
		put_off(step, STEP_AGAIN, LOCKED_LOOK_MS);
	else if (job->answer.next[0] == '\0')
	{
		step->end = STEP_DONE;
		if (!template_note_missing(job->account_id, job->row.workspace_id, job->listing_since))
			put_off(step, STEP_AGAIN, LOCKED_LOOK_MS);
	}
	else if (job->pages < MAX_PAGES)
		put_off(step, STEP_NEXT, 0);
	else
		note_trouble(step, "the list has too many pages", true);
}

/* Take in an answer */
static void
take_answer(Step *step)
{
	Job		   *job = step->job;
	const Judgement *j = &job->answer.judgement;
	long		delay;

	if (j->verdict == VERDICT_ACCEPTED)
	{
		if (job->kind == JOB_CREATE_TEMPLATE)
			write_created(step);
		else
			write_page(step);
		return;
	}

	/* Fewer at once, or another question, see leave_answer */
	if (job->answer.exists || (job->answer.too_large && job->page_size > 1))
	{
		put_off(step, STEP_NEXT, 0);
		return;
	}
	if (j->verdict == VERDICT_RETRY && !job->answer.too_large)
	{
		delay = retry_delay(job->tries, j->min_delay_ms);
		if (TimestampTzPlusMilliseconds(step->now, delay) < job->row.expires_at)
		{
			note_trouble(step, j->detail, false);
			put_off(step, STEP_NEXT, delay);
			return;
		}
	}
	note_trouble(step, j->detail, true);
}

/* Write down what a webhook told */
static void
note_template(Step *step)
{
	Job		   *job = step->job;

	step->end = STEP_DONE;
	if (!template_note_told(spec_int(job, "account"), spec_text(job, "name"), spec_text(job, "language"),
							spec_text(job, "status"), spec_text(job, "reason"), spec_text(job, "template_id")))
		put_off(step, STEP_AGAIN, LOCKED_LOOK_MS);
}

/* Do a step; in its transaction */
static void
do_step(void *arg)
{
	Step	   *step = arg;
	Job		   *job = step->job;
	OutboxRow  *row = &job->row;
	MemoryContext old = MemoryContextSwitchTo(step_context);

	/* See the head of this file */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);

	step->begun = true;
	if (job->errors >= MAX_ERRORS)
	{
		ereport(LOG,
				(errmsg("a job of the outbox is dropped, because it fails again and again")));
		step->end = STEP_DONE;
	}
	else if (job->kind == JOB_UNREAD && !read_payload(job))
		step->end = STEP_DONE;
	else if (job->kind == JOB_OTHER)
	{
		step->webhooks = job->spec != NULL;
		if (job->spec == NULL || !webhooks_job(row->workspace_id, job->spec))
			ereport(LOG,
					(errmsg("a job of the outbox is dropped, because it is of no known kind")));
		step->end = STEP_DONE;
	}
	else if (job->kind == JOB_NOTE_TEMPLATE)
		note_template(step);
	else if (job->state == JOB_ANSWERED)
		take_answer(step);
	else if (step->now >= row->expires_at)
		note_trouble(step, "there was no time for it within a day", true);
	else if (step->place)
		make_request(step);
	else
		put_off(step, STEP_AGAIN, 0);

	if (step->end == STEP_DONE)
		outbox_delete(&row, 1);
	MemoryContextSwitchTo(old);
}

/* Go on from an answer that was written */
static void
leave_answer(Job *job)
{
	const MetaTemplateAnswer *answer = &job->answer;

	job->tries++;
	if (answer->judgement.verdict == VERDICT_ACCEPTED)
	{
		strlcpy(job->after, answer->next, sizeof(job->after));
		job->tries = 0;
	}
	else if (answer->too_large)
		job->page_size = Max(job->page_size / PAGE_SHRINK, 1);
	else if (answer->exists)
	{
		job->look_up = true;
		job->tries = 0;
	}
	memset(&job->answer, 0, sizeof(job->answer));
	MemoryContextDelete(job->answer_context);
	job->answer_context = NULL;
}

/* Start the request that a step has made; false when it does not start */
static bool
start_request(Step *step)
{
	Job		   *job = step->job;
	TimestampTz now = GetCurrentTimestamp();

	if (!http_client_start(sender.client, &step->request))
	{
		job->due_at = TimestampTzPlusMilliseconds(now, RETRY_MS);
		return false;
	}
	job->state = JOB_IN_FLIGHT;
	job->started_at = now;
	if (job->after[0] == '\0')
		job->listing_since = now;
	job->pages++;
	in_flight++;
	return true;
}

/* Carry out what a step has decided */
static void
finish_step(Step *step)
{
	Job		   *job = step->job;

	job->errors = 0;
	if (step->webhooks)
		webhooks_done(step->now);
	switch (step->end)
	{
		case STEP_AGAIN:
			job->due_at = step->due_at;
			job_wait(job);
			break;
		case STEP_NEXT:
			leave_answer(job);
			job->state = JOB_WAITING;
			job->due_at = step->due_at;
			job_wait(job);
			break;
		case STEP_START:
			if (!start_request(step))
				job_wait(job);
			break;
		case STEP_DONE:
			job_free(job);
			break;
	}
}

/* Run a step */
static void
run_step(Job *job, bool place, TimestampTz now)
{
	Step		step;

	memset(&step, 0, sizeof(step));
	step.job = job;
	step.now = now;
	step.place = place;
	if (step_context == NULL)
		step_context = AllocSetContextCreate(TopMemoryContext, "otp job step", ALLOCSET_DEFAULT_SIZES);

	if (turn_do(do_step, &step, NULL))
		finish_step(&step);
	else
	{
		if (step.webhooks)
			webhooks_undo();
		if (step.begun)
		{
			job->errors++;
			job->due_at = TimestampTzPlusMilliseconds(now, retry_delay(job->errors, LOCKED_LOOK_MS));
		}
		else
			no_step_before = TimestampTzPlusMilliseconds(now, LOCKED_LOOK_MS);
		job_wait(job);
	}
	MemoryContextReset(step_context);
}

/* ---- what the loop calls ---- */

/* Is there something of codes to be done, or soon? */
static bool
codes_wait(void)
{
	return sender.look || sender.flying > 0 || settle_pending() || MyLatch->is_set;
}

/* Do what is due */
TimestampTz
jobs_turn(int slots, TimestampTz now)
{
	int			most = MAX_IN_FLIGHT;

	most = Min(most, in_flight + (otp_delivery ? slots : 0));
	for (int i = 0; i < STEPS_PER_TURN && now >= no_step_before && (i == 0 || !codes_wait()); i++)
	{
		Job		   *job = next_job(in_flight < most, now);

		if (job == NULL)
			break;
		run_step(job, in_flight < most, now);
	}

	/* Due, but there is no place: an answer, or time, makes one */
	full_until = in_flight >= most ? TimestampTzPlusMilliseconds(now, FULL_LOOK_MS) : 0;
	return Min(next_time(), TimestampTzPlusMilliseconds(now, IDLE_MS));
}

/* Is there something to do? */
bool
jobs_pending(TimestampTz now)
{
	return next_time() <= now;
}

/* Take in an answer */
void
jobs_judge(const HttpResponse *response, TimestampTz now)
{
	Job		   *job = response->owner;
	MemoryContext old;

	job->answer_context = AllocSetContextCreate(job->context, "otp job answer", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(job->answer_context);
	if (job->kind == JOB_CREATE_TEMPLATE && !job->look_up)
		meta_template_judge_create(response, &job->answer);
	else
		meta_template_judge_list(response, &job->answer);
	MemoryContextSwitchTo(old);
	job->state = JOB_ANSWERED;
	job->due_at = now;
	job_wait(job);
	full_until = 0;
	in_flight--;
}

/* How many are in flight */
int
jobs_in_flight(void)
{
	return in_flight;
}
