/*-------------------------------------------------------------------------
 *
 * country.h
 *	  Which country a phone is of, by otp.countries.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_COUNTRY_H
#define OTP_COUNTRY_H

/* Longest name of a country that is told apart; ISO 3166 has two letters */
#define COUNTRY_LENGTH 7

typedef struct Countries Countries;

/*
 * Read otp.countries into the current memory context. Needs SPI_connect, the
 * owner's scope and an active snapshot; leaves the memory context as it is.
 */
extern Countries *country_load(void);
extern void country_free(Countries *countries);

/*
 * The same, kept by the session and read again after a change: good until
 * the next call.
 */
extern const Countries *country_kept(void);

/* The country of an E.164 number of so many bytes; "" when none is known. */
extern const char *country_find(const Countries *countries, const char *phone, int length);

/* Do these prefixes, such as +1 and +49, have all numbers of a country? One that is not known is a prefix itself. */
extern bool country_covered(const Countries *countries, const char *country, char **prefixes, int n);

#endif							/* OTP_COUNTRY_H */
