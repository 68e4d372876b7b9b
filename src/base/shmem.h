/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Is the shared memory of the extension there?
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SHMEM_H
#define OTP_SHMEM_H

/* Set by otp.c once shared memory is attached. */
extern bool shmem_attached;

/* Raise 55000 when the server was started without the library. */
extern void shmem_require(void);

#endif							/* OTP_SHMEM_H */
