/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The differences between PostgreSQL 14 and 18, all of them.
 *
 * Included by every file right after postgres.h; the code below it reads as
 * if there were one version only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_COMPAT_H
#define OTP_COMPAT_H

#if PG_VERSION_NUM < 140000
#error "otp needs PostgreSQL 14 or later"
#endif

/*
 * The library is built with hidden visibility, so that our names cannot
 * clash with another library's; before 16 the server's own macro does not
 * say which symbols are entry points.
 */
#if PG_VERSION_NUM < 160000
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
#endif

/* Before 16, PG_FUNCTION_INFO_V1 exports what it makes, but not the function. */
#define EXPORTED_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

/* Before 15, shared memory is asked for in _PG_init; then came a hook. */
#if PG_VERSION_NUM >= 150000
#define HAVE_SHMEM_REQUEST_HOOK 1
#endif

/* Since 17, an extension can name what it waits for. Costly: keep the result. */
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 170000
#define compat_wait_event(name) WaitEventExtensionNew(name)
#else
#define compat_wait_event(name) PG_WAIT_EXTENSION
#endif

/* Since 17, a wait event set belongs to a resource owner instead of a context. */
#if PG_VERSION_NUM >= 170000
#define compat_wait_event_set(nevents) CreateWaitEventSet(NULL, nevents)
#else
#define compat_wait_event_set(nevents) CreateWaitEventSet(TopMemoryContext, nevents)
#endif

/* Since 16, one function tells the owner of any object. */
#if PG_VERSION_NUM >= 160000
#define compat_database_ownercheck(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#define compat_extension_ownercheck(oid, role) object_ownercheck(ExtensionRelationId, oid, role)
#define compat_schema_ownercheck(oid, role) object_ownercheck(NamespaceRelationId, oid, role)
#else
#define compat_database_ownercheck(oid, role) pg_database_ownercheck(oid, role)
#define compat_extension_ownercheck(oid, role) pg_extension_ownercheck(oid, role)
#define compat_schema_ownercheck(oid, role) pg_namespace_ownercheck(oid, role)
#endif

/* Since 17, a backend's virtual transaction id is a struct of its own. */
#if PG_VERSION_NUM >= 170000
#define compat_lxid() (MyProc->vxid.lxid)
#else
#define compat_lxid() (MyProc->lxid)
#endif

/* Since 17, a variable has the number of this process, from 0 on; before, its PGPROC. Needs storage/proc.h. */
#if PG_VERSION_NUM >= 170000
#define compat_process_number() MyProcNumber
#else
#define compat_process_number() (MyProc->pgprocno)
#endif

/* Later minor releases mark a database whose removal was cut short. */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB -2
#endif

/* 18 took this away in favour of a specifier that stands in front. */
#ifndef pg_attribute_noreturn
#define pg_attribute_noreturn() __attribute__((noreturn))
#endif

/* Since 16, the macros for bytea and text have a header of their own. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* Since 15, the server has a generator of its own; both are seeded per process. */
#if PG_VERSION_NUM >= 150000
#include "common/pg_prng.h"
#define compat_random() pg_prng_double(&pg_global_prng_state)
#else
#define compat_random() ((double) random() / 2147483648.0)	/* 2^31 */
#endif

/* Since 15, one function sets a set-returning function up. */
#if PG_VERSION_NUM < 150000
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/tuplestore.h"

/* Prepare to give rows */
static inline void
InitMaterializedSRF(FunctionCallInfo fcinfo, bits32 flags)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) || !(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &rsinfo->setDesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->setDesc = CreateTupleDescCopy(rsinfo->setDesc);
	rsinfo->setResult = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	MemoryContextSwitchTo(old);
}
#endif

#endif							/* OTP_COMPAT_H */
