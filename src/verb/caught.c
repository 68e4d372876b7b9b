/*-------------------------------------------------------------------------
 *
 * caught.c
 *	  Errors that are answers: for functions whose callers want a status
 *	  instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/json.h"
#include "verb/caught.h"

/* Longest code in a DETAIL */
#define MAX_CODE 64

/* What is no error of class OT, and an answer all the same */
static const struct
{
	int			sqlstate;
	int			status;
	const char *code;
}			others[] = {
	{ERRCODE_INVALID_PARAMETER_VALUE, 400, "invalid_request"},
	{ERRCODE_INSUFFICIENT_PRIVILEGE, 403, "permission_denied"},
	{ERRCODE_PROGRAM_LIMIT_EXCEEDED, 409, "limit_reached"},
	{ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, 409, "conflict"}
};

/* Give the HTTP status of an error; 0: it is none of ours to tell */
static int
status_of(const ErrorData *error)
{
	const char *state = unpack_sql_state(error->sqlerrcode);

	/* What is too long to be read is a limit of another kind */
	if (strcmp(caught_code(error), "payload_too_large") == 0)
		return 413;
	for (int i = 0; i < lengthof(others); i++)
		if (others[i].sqlstate == error->sqlerrcode)
			return others[i].status;
	if (strncmp(state, "OT", 2) != 0)
		return 0;

	/* OT429 is 429; OT4T0 and OT4I0 share theirs with others */
	if (strspn(state + 2, "0123456789") == 3)
		return atoi(state + 2);
	return strcmp(state, "OT4I0") == 0 ? 409 : 400;
}

/* Do it in a subtransaction, and raise nothing */
ErrorData *
caught_any(void (*work) (void *arg), void *arg, int *status)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	*status = 200;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (error != NULL)
		*status = status_of(error);
	return error;
}

/* Do it in a subtransaction */
ErrorData *
caught_work(void (*work) (void *arg), void *arg, int *status)
{
	ErrorData  *error = caught_any(work, arg, status);

	if (error != NULL && *status == 0)
		ReThrowError(error);
	return error;
}

/* Give the word for programs */
const char *
caught_code(const ErrorData *error)
{
	const char *code = "internal_error";
	json_t	   *detail = error->detail != NULL ? json_from_text(error->detail, strlen(error->detail)) : NULL;
	const char *told = json_member_string(detail, "code", MAX_CODE);

	for (int i = 0; i < lengthof(others); i++)
		if (others[i].sqlstate == error->sqlerrcode)
			code = others[i].code;
	if (told != NULL)
		code = pstrdup(told);
	json_decref(detail);
	return code;
}
