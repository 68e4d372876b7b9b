/*
 * commit_clock.c
 *		Send codes, and note when each was committed.
 *
 *		commit_clock CLIENTS INTERVAL_US SENDS
 *
 * Each client sends so many, one every INTERVAL_US or, with 0, as fast as it
 * can. Prints the otp_id, the time before COMMIT was sent and the time when it
 * had returned, in microseconds of the wall clock; then, on stderr, the rate.
 * Where to connect, libpq's environment says.
 */
#include <libpq-fe.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 64

typedef struct Sent
{
	char		otp_id[40];
	int64_t		before_us;
	int64_t		after_us;
} Sent;

typedef struct Client
{
	pthread_t	thread;
	unsigned int seed;
	PGconn	   *connection;
	Sent	   *sent;
} Client;

static int	clients;
static long interval_us;
static int	sends;

/* Microseconds of the wall clock. */
static int64_t
wall_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Give up. */
static void
give_up(PGconn *connection)
{
	fprintf(stderr, "commit_clock: %s", PQerrorMessage(connection));
	exit(1);
}

/* Run a prepared statement. */
static PGresult *
run(PGconn *connection, const char *name, int nparams, const char *const *params)
{
	PGresult   *result = PQexecPrepared(connection, name, nparams, params, NULL, NULL, 0);
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
		give_up(connection);
	return result;
}

/* Connect and prepare. */
static void
client_open(Client *client)
{
	static const char *const statements[][2] = {
		{"begin", "BEGIN"},
		{"send", "SELECT otp_id FROM otp_send($1)"},
		{"commit", "COMMIT"}
	};

	client->connection = PQconnectdb("");
	if (PQstatus(client->connection) != CONNECTION_OK)
		give_up(client->connection);
	for (int i = 0; i < 3; i++)
	{
		PGresult   *result = PQprepare(client->connection, statements[i][0], statements[i][1], 0, NULL);

		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			give_up(client->connection);
		PQclear(result);
	}
}

/* One client's work. */
static void *
client_main(void *arg)
{
	Client	   *client = arg;
	int64_t		next = wall_us() + (interval_us > 0 ? rand_r(&client->seed) % interval_us : 0);

	for (int i = 0; i < sends; i++)
	{
		Sent	   *sent = &client->sent[i];
		char		phone[32];
		const char *params[1] = {phone};
		PGresult   *result;

		if (interval_us > 0)
		{
			int64_t		now = wall_us();

			if (next > now)
				usleep((useconds_t) (next - now));
			next += interval_us;
		}
		snprintf(phone, sizeof(phone), "+91%05d%05d", rand_r(&client->seed) % 100000, rand_r(&client->seed) % 100000);
		PQclear(run(client->connection, "begin", 0, NULL));
		result = run(client->connection, "send", 1, params);
		snprintf(sent->otp_id, sizeof(sent->otp_id), "%s", PQgetvalue(result, 0, 0));
		PQclear(result);
		sent->before_us = wall_us();
		result = run(client->connection, "commit", 0, NULL);
		sent->after_us = wall_us();
		PQclear(result);
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	static Client all[MAX_CLIENTS];
	int64_t		start;
	int64_t		end;

	if (argc != 4 || (clients = atoi(argv[1])) < 1 || clients > MAX_CLIENTS || (sends = atoi(argv[3])) < 1)
	{
		fprintf(stderr, "Usage: commit_clock CLIENTS INTERVAL_US SENDS\n");
		return 2;
	}
	interval_us = atol(argv[2]);
	for (int i = 0; i < clients; i++)
	{
		all[i].seed = (unsigned int) wall_us() + i * 7919;
		all[i].sent = calloc(sends, sizeof(Sent));
		client_open(&all[i]);
	}
	start = wall_us();
	for (int i = 0; i < clients; i++)
		pthread_create(&all[i].thread, NULL, client_main, &all[i]);
	for (int i = 0; i < clients; i++)
		pthread_join(all[i].thread, NULL);
	end = wall_us();
	for (int i = 0; i < clients; i++)
	{
		for (int k = 0; k < sends; k++)
			printf("%s %lld %lld\n", all[i].sent[k].otp_id,
				   (long long) all[i].sent[k].before_us, (long long) all[i].sent[k].after_us);
		PQfinish(all[i].connection);
	}
	fprintf(stderr, "%.0f/s\n", (double) clients * sends * 1e6 / (double) (end - start));
	return 0;
}
