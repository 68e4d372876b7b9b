/*-------------------------------------------------------------------------
 *
 * api_key.h
 *	  Whose an API key is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_VERB_API_KEY_H
#define OTP_VERB_API_KEY_H

#include "store/api_key.h"

/*
 * Tell whose key it is, and note its use; text NULL is a call without a key.
 * Raises invalid_api_key, with the same words and after the same work, for
 * whatever is no key, and for one that is unknown, has expired or is revoked.
 * Writes nothing: works on a standby and in a read-only transaction. Needs
 * SPI_connect and the owner's scope.
 */
extern void api_key_authenticate(const char *text, size_t length, ApiKey *key);

#endif							/* OTP_VERB_API_KEY_H */
