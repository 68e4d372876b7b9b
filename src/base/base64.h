/*-------------------------------------------------------------------------
 *
 * base64.h
 *	  Bytes as text.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_BASE64_H
#define OTP_BASE64_H

/* Bytes as base 64, palloc'd and NUL-terminated. Needs nothing. */
extern char *base64_text(const void *data, size_t length);

#endif							/* OTP_BASE64_H */
