/*-------------------------------------------------------------------------
 *
 * keyring.h
 *	  The keys in otp.key_file, and the sub-keys derived from them.
 *
 * The file has one key per line, 64 hex digits; blank lines and lines that
 * begin with # do not count. The first key is current, the others still open
 * what was made with them: rotation is putting a new line on top.
 *
 * Every function looks whether the file has changed, and reads it again when
 * it has. A new file that is missing or bad leaves the keys already read in
 * force, and is reported in one WARNING per change. So a process keeps on
 * working while someone edits the file; a new process needs a good one.
 *
 * Unless said otherwise, functions need a current resource owner (a
 * transaction), because reading the file computes hashes, and raise XX000
 * when these cannot be computed. No message has anything of a key in it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_KEYRING_H
#define OTP_KEYRING_H

/* Keys that a file can have */
#define KEYRING_MAX_KEYS 16

/* Bytes of a key, and of every sub-key */
#define KEY_LENGTH 32

/* Characters of a fingerprint, without the NUL */
#define FINGERPRINT_LENGTH 16

/* What a sub-key is for; the names in keyring.c are part of every hash made. */
typedef enum KeyPurpose
{
	KEY_CODE,					/* deriving codes */
	KEY_HASH,					/* hashing codes */
	KEY_SEAL,					/* encrypting */
	KEY_SEAL_MAC,				/* authenticating what is encrypted */
	KEY_PHONE,					/* hashing phone numbers */
	KEY_SEND_KEY				/* hashing limit_keys and idempotency_key */
} KeyPurpose;

#define KEY_PURPOSES (KEY_SEND_KEY + 1)

/*
 * Make the key file with one new key, readable by us only, when there is
 * none. For the postmaster, from shmem_startup_hook; does nothing anywhere
 * else, under pg_upgrade, or on a server that is about to recover from a
 * primary or an archive, whose key must come from there. Needs no resource
 * owner. Raises nothing: a server without a key must start, so a failure is
 * a WARNING.
 */
extern void keyring_create_file_if_missing(void);

/*
 * Tell whether there is a key to work with. *why gets a palloc'd reason that
 * names the file, or NULL when nothing is wrong; with true, a reason means
 * that keys read earlier are in force. Raises nothing for a bad file.
 */
extern bool keyring_available(char **why);

/* The id of the current key; keyring_raise when there is none. */
extern int	keyring_current(void);

/* Is this key in the file? Reads the file again before it says no. */
extern bool keyring_has(int key_id);

/*
 * Write the fingerprint by which people tell keys apart, NUL-terminated;
 * keyring_raise when the key is not in the file.
 */
extern void keyring_fingerprint(int key_id, char out[FINGERPRINT_LENGTH + 1]);

/*
 * Write the ids of all keys in the file, at most max, the current one first.
 * Gives their number, 0 when there is no key.
 */
extern int	keyring_ids(int *ids, int max);

/*
 * A sub-key, KEY_LENGTH bytes; keyring_raise when the key is not in the file.
 * The bytes stay where they are until the key is found to be gone from the
 * file: a second call for the same key leaves the first pointer good.
 */
extern const uint8 *keyring_subkey(int key_id, KeyPurpose purpose);

/*
 * Raise OT500, key_unavailable, with a full sentence on what to do as hint,
 * or NULL. Needs nothing.
 */
extern void keyring_raise(const char *why) pg_attribute_noreturn();

#endif							/* OTP_KEYRING_H */
