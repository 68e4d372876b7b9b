/*-------------------------------------------------------------------------
 *
 * key.h
 *	  The keys that this database has used.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_KEY_H
#define OTP_KEY_H

/*
 * Give the key to hash and seal with: the key file's current one, noted in
 * otp.keys on first use. Raises key_unavailable when this database has used
 * keys and the file has none of them: sealing with a strange key would leave
 * two kinds of secrets that no single file opens. Needs SPI_connect and the
 * owner's scope in a transaction that may write.
 */
extern int	key_for_writing(void);

/*
 * Give the key for hashes that others must find again after a rotation: the
 * oldest that the database has used and the key file still has; the current
 * one before the first use. Needs SPI_connect and the owner's scope.
 */
extern int	key_oldest(void);

/*
 * Make sure that a key this database has used is in the key file; raises
 * key_unavailable with its fingerprint when it is not. Needs SPI_connect and
 * the owner's scope.
 */
extern void key_require(int key_id);

/*
 * Are the keys of this database in the key file? NULL when they are (or none
 * was used yet), else a sentence that says what is missing. Writes nothing.
 */
extern char *key_trouble(void);

#endif							/* OTP_KEY_H */
