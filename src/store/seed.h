/*-------------------------------------------------------------------------
 *
 * seed.h
 *	  The rows that CREATE EXTENSION makes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SEED_H
#define OTP_SEED_H

#include "access/htup.h"
#include "utils/rel.h"

/*
 * Delete the untouched seed whose key a new row has, if there is one. rel is
 * a table with a column "seeded"; the key is its primary key. Needs
 * SPI_connect and the owner's scope.
 */
extern void seed_delete(Relation rel, HeapTuple row);

/* Is seed_delete what deletes the row that a trigger is called for? */
extern bool seed_deleting;

#endif							/* OTP_SEED_H */
