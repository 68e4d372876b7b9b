/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Is the shared memory of the extension there?
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "base/shmem.h"

bool		shmem_attached = false;

/* Require the shared memory */
void
shmem_require(void)
{
	if (!shmem_attached)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("otp is not loaded at server start"),
				 errhint("Add otp to shared_preload_libraries in postgresql.conf and restart the server.")));
}
