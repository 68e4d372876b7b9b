/*-------------------------------------------------------------------------
 *
 * sms_text.c
 *	  Fill in the words of an SMS.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "worker/sender.h"

/* For a workspace that has no words of its own */
#define DEFAULT_BODY "{code} is your verification code."

/* Append a text with its marks filled in */
static void
append_filled(StringInfo out, const char *text, const char *code,
			  const char *minutes, const char *app_name)
{
	const struct
	{
		const char *mark;
		const char *value;
	}			marks[] = {
		{"{code}", code},
		{"{minutes}", minutes},
		{"{app}", app_name}
	};

	while (*text != '\0')
	{
		bool		filled = false;

		/* '{' is no part of a longer character in any server encoding */
		for (int i = 0; *text == '{' && i < lengthof(marks); i++)
		{
			size_t		length = strlen(marks[i].mark);

			if (strncmp(text, marks[i].mark, length) == 0)
			{
				appendStringInfoString(out, marks[i].value);
				text += length;
				filled = true;
				break;
			}
		}
		if (!filled)
			appendStringInfoChar(out, *text++);
	}
}

/* Fill in the words */
char *
sms_text_fill(const char *body, const char *last_line, const char *code,
			  int expires_in, const char *app_name)
{
	StringInfoData out;
	char		minutes[12];

	snprintf(minutes, sizeof(minutes), "%d", Max(1, (expires_in + 59) / 60));
	if (app_name == NULL)
		app_name = "";

	initStringInfo(&out);
	append_filled(&out, body != NULL ? body : DEFAULT_BODY, code, minutes, app_name);

	/* Phones look for it on a line of its own, the last one */
	if (last_line != NULL && last_line[0] != '\0')
	{
		appendStringInfoChar(&out, '\n');
		append_filled(&out, last_line, code, minutes, app_name);
	}
	return out.data;
}
