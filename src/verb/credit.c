/*-------------------------------------------------------------------------
 *
 * credit.c
 *	  otp.add_credits: give a workspace something to send with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "store/credit.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_add_credits);

/* Most that one call adds or takes */
#define MAX_AMOUNT INT64CONST(1000000000000)

/* Longest reference, in bytes */
#define MAX_REFERENCE 255

/* Add credits, or take some back */
Datum
otp_add_credits(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *workspace;
	char	   *reference;
	int64		amount;
	int64		known;
	int64		balance;
	int32		workspace_id;

	owner_require("add_credits");
	workspace = verb_text(fcinfo, 0, "workspace", NAMEDATALEN);
	reference = verb_text(fcinfo, 2, "reference", MAX_REFERENCE);
	if (workspace == NULL)
		error_invalid_argument("argument \"workspace\" is NULL", "Name the workspace whose credits they are to be.");
	if (PG_ARGISNULL(1))
		error_invalid_argument("argument \"amount\" is NULL", "Give the number of credits.");
	amount = PG_GETARG_INT64(1);
	if (amount == 0 || amount > MAX_AMOUNT || amount < -MAX_AMOUNT)
		error_invalid_argument("argument \"amount\" is no number of credits to add",
							   "It is up to 1000000000000, or less than 0 for a correction.");
	if (reference != NULL && reference[0] == '\0')
		error_invalid_argument("argument \"reference\" is empty", "NULL stands for no reference.");

	verb_begin(&scope, "add_credits", VERB_WRITES);
	workspace_id = workspace_named(workspace)->workspace_id;
	if (credit_enter(workspace_id, amount, reference, GetUserNameFromId(scope.caller, false), &known))
	{
		if (amount > 0 && credit_balance(workspace_id) > CREDIT_BALANCE_MAX - amount)
			error_invalid_argument("the workspace would have too many credits",
								   "A balance is 1000000000000000 at most.");
		if (amount > 0)
			credit_add(workspace_id, amount);
		else if (!credit_remove(workspace_id, -amount))
			error_raise(OTP_INSUFFICIENT_CREDITS, "the workspace has fewer credits than are to be taken",
						"Its balance is in otp.credit_balances.", -1, NULL);
	}
	else if (known != amount)
		error_invalid_argument("the reference was used with another amount",
							   "It is in otp.credit_history; what is bought anew has a reference of its own.");
	balance = credit_balance(workspace_id);
	verb_end(&scope);
	PG_RETURN_INT64(balance);
}
