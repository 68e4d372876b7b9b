/*-------------------------------------------------------------------------
 *
 * workspace.c
 *	  The functions that make, rename, suspend and delete workspaces, and say
 *	  which provider account each sends through.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "store/account.h"
#include "store/workspace_change.h"
#include "verb/configure.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_create_workspace);
EXPORTED_FUNCTION(otp_rename_workspace);
EXPORTED_FUNCTION(otp_suspend_workspace);
EXPORTED_FUNCTION(otp_resume_workspace);
EXPORTED_FUNCTION(otp_delete_workspace);
EXPORTED_FUNCTION(otp_use_provider);

/* Longest name, and texts for people, in bytes */
#define MAX_NAME 63
#define MAX_APP_NAME 256
#define MAX_REASON 1000
#define MAX_SENDER 64

/* The workspace that NULL stands for */
#define DEFAULT_NAME "default"

/* Take an argument that must be there */
static char *
required_text(FunctionCallInfo fcinfo, int argument, const char *name, int max)
{
	char	   *value = verb_text(fcinfo, argument, name, max);

	if (value == NULL)
		error_invalid_argument(psprintf("argument \"%s\" is NULL", name), "Give it a value.");
	return value;
}

/* Take the name that a workspace is to have */
static char *
take_name(FunctionCallInfo fcinfo, int argument, const char *argument_name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_.-";
	char	   *name = required_text(fcinfo, argument, argument_name, NAMEDATALEN);
	size_t		length = strlen(name);

	/* As the table's own check has it */
	if (length == 0 || length > MAX_NAME || strspn(name, letters) != length || strchr("_.-", name[0]) != NULL)
		error_invalid_argument(psprintf("argument \"%s\" is not a name for a workspace", argument_name),
							   "It has up to 63 of a to z, 0 to 9, \"_\", \".\" and \"-\", and begins with a letter or digit.");
	return name;
}

/* Raise that a name is taken */
static void
refuse_name(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("workspace \"%s\" already exists", name),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Make a workspace */
Datum
otp_create_workspace(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *name;
	char	   *app_name;
	int32		workspace_id;

	owner_require("create_workspace");
	name = take_name(fcinfo, 0, "name");
	app_name = verb_text(fcinfo, 1, "app_name", MAX_APP_NAME);

	verb_begin(&scope, "create_workspace", VERB_WRITES);
	workspace_id = workspace_create(name, app_name != NULL ? app_name : "");
	if (workspace_id == 0)
		refuse_name(name);
	verb_end(&scope);
	PG_RETURN_INT32(workspace_id);
}

/* Give a workspace another name */
Datum
otp_rename_workspace(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;
	char	   *new_name;

	owner_require("rename_workspace");
	workspace = required_text(fcinfo, 0, "workspace", NAMEDATALEN);
	new_name = take_name(fcinfo, 1, "new_name");

	verb_begin(&scope, "rename_workspace", VERB_WRITES);
	if (strcmp(workspace, DEFAULT_NAME) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("workspace \"%s\" cannot be renamed", workspace),
				 errhint("It is the one that functions use when none is named."),
				 errhidestmt(true),
				 errhidecontext(true)));
	if (!workspace_rename(workspace_named(workspace)->workspace_id, new_name))
		refuse_name(new_name);
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Send no codes for a workspace */
Datum
otp_suspend_workspace(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;
	char	   *reason;

	owner_require("suspend_workspace");
	workspace = required_text(fcinfo, 0, "workspace", NAMEDATALEN);
	reason = verb_text(fcinfo, 1, "reason", MAX_REASON);

	verb_begin(&scope, "suspend_workspace", VERB_WRITES);
	workspace_suspend(workspace_named(workspace)->workspace_id, reason);
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Send codes for it again */
Datum
otp_resume_workspace(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;

	owner_require("resume_workspace");
	workspace = required_text(fcinfo, 0, "workspace", NAMEDATALEN);

	verb_begin(&scope, "resume_workspace", VERB_WRITES);
	workspace_resume(workspace_named(workspace)->workspace_id);
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Write what a workspace has in numbers; false when it has nothing */
static bool
describe_contents(const WorkspaceContents *contents, StringInfo out)
{
	for (int i = 0; i < WORKSPACE_CONTENTS; i++)
	{
		if (contents->counts[i] == 0)
			continue;
		appendStringInfo(out, "%s%s: " INT64_FORMAT, out->len > 0 ? ", " : "",
						 workspace_content_names[i], contents->counts[i]);
	}
	return out->len > 0;
}

/* Delete a workspace */
Datum
otp_delete_workspace(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;
	bool		cascade = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	int32		workspace_id;
	WorkspaceContents contents;
	StringInfoData detail;

	owner_require("delete_workspace");
	workspace = required_text(fcinfo, 0, "workspace", NAMEDATALEN);

	verb_begin(&scope, "delete_workspace", VERB_WRITES);
	if (strcmp(workspace, DEFAULT_NAME) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("workspace \"%s\" cannot be deleted", workspace),
				 errhint("A restored dump would have it again. otp.suspend_workspace stops its codes."),
				 errhidestmt(true),
				 errhidecontext(true)));
	workspace_id = workspace_named(workspace)->workspace_id;
	if (!workspace_lock(workspace_id, workspace))
	{
		/* Somebody was faster: what is there now? */
		(void) workspace_named(workspace);
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("workspace \"%s\" has changed at the same time", workspace),
				 errhidestmt(true),
				 errhidecontext(true)));
	}

	workspace_count(workspace_id, &contents);
	initStringInfo(&detail);
	if (describe_contents(&contents, &detail) && !cascade)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("workspace \"%s\" is not empty", workspace),
				 errdetail("It has %s.", detail.data),
				 errhint("Delete it with all that by cascade => true."),
				 errhidestmt(true),
				 errhidecontext(true)));
	workspace_delete(workspace_id, GetCurrentTimestamp());
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Have a workspace send through an account */
Datum
otp_use_provider(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;
	char	   *account;
	char	   *sender;
	bool		exclusive = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	const char *channel;
	int32		workspace_id;
	AccountUse	use;
	int			others;

	owner_require("use_provider");
	workspace = required_text(fcinfo, 0, "workspace", NAMEDATALEN);
	account = required_text(fcinfo, 1, "account", NAMEDATALEN);
	sender = verb_text(fcinfo, 2, "sender", MAX_SENDER);

	/* The account before the workspace, as the configure functions lock them */
	verb_begin(&scope, "use_provider", VERB_WRITES);
	workspace_id = workspace_named(workspace)->workspace_id;
	if (!account_lock_use(account, &use))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("provider account \"%s\" does not exist", account),
				 errhint("SELECT account FROM otp.providers lists those that do; otp.configure_meta and otp.configure_twilio make them."),
				 errhidestmt(true),
				 errhidecontext(true)));
	account_require_free(account, use.exclusive_to, workspace_id);
	if (sender != NULL)
	{
		const char *defect = configure_sender_defect(use.provider, sender);

		if (defect != NULL)
			error_invalid_argument("argument \"sender\" is not valid", defect);
	}
	others = exclusive ? account_count_others(use.account_id, workspace_id) : 0;
	if (others > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("provider account \"%s\" is used by other workspaces", account),
				 errdetail_plural("It is %d.", "They are %d.", others, others),
				 errhint("otp.providers tells which."),
				 errhidestmt(true),
				 errhidecontext(true)));

	channel = strcmp(use.provider, "meta") == 0 ? "whatsapp" : "sms";
	account_use(workspace_id, channel, use.account_id);
	account_set_sender(workspace_id, channel, sender);
	if (exclusive != (use.exclusive_to != 0))
		account_set_exclusive(use.account_id, exclusive ? workspace_id : 0);

	/* What waited for a working account can go now */
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}
