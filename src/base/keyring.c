/*-------------------------------------------------------------------------
 *
 * keyring.c
 *	  The keys in otp.key_file, and the sub-keys derived from them.
 *
 * A key itself is used for nothing but deriving, right when the file is read,
 * and is wiped then; what a process keeps are the sub-keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "base/code.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/keyring.h"

#define HEX_LENGTH (2 * KEY_LENGTH)

/* Room for all keys with a comment on each */
#define MAX_FILE_SIZE 16384

/*
 * A file written again so soon after it was read may show the same time of
 * change, as far as the file system's clock has ticks (FAT's has 2 s).
 */
#define SETTLED_AFTER_S 2

/* A key of the file, ready for use */
typedef struct Key
{
	int			key_id;
	char		fingerprint[FINGERPRINT_LENGTH + 1];
	uint8		subkeys[KEY_PURPOSES][KEY_LENGTH];
} Key;

/* What tells whether a file is the one that was read */
typedef struct FileStamp
{
	dev_t		device;
	ino_t		inode;
	off_t		size;
	mode_t		mode;
	uid_t		owner;
	struct timespec modified;
	struct timespec changed;	/* rights, too */
} FileStamp;

/*
 * These are part of every hash and seal ever made: never change one.
 */
static const char *const purpose_names[KEY_PURPOSES] = {
	[KEY_CODE] = "otp/v1/code",
	[KEY_HASH] = "otp/v1/hash",
	[KEY_SEAL] = "otp/v1/seal",
	[KEY_SEAL_MAC] = "otp/v1/seal-mac",
	[KEY_PHONE] = "otp/v1/phone",
	[KEY_SEND_KEY] = "otp/v1/send_key",
};
static const char id_label[] = "otp key id";
static const char fingerprint_label[] = "otp fingerprint";

/* The keys in force, current first, each in TopMemoryContext */
static Key *keys[KEYRING_MAX_KEYS];
static int	nkeys = 0;

/* The file they were looked for in, and what is wrong with it, or "" */
static bool looked = false;
static bool settled = false;	/* can the stamp be trusted? */
static FileStamp read_stamp;
static char problem[192];

/* Write the full name of the key file */
static void
key_file_path(char path[MAXPGPATH])
{
	if (is_absolute_path(otp_key_file))
		strlcpy(path, otp_key_file, MAXPGPATH);
	else
		snprintf(path, MAXPGPATH, "%s/%s", DataDir, otp_key_file);
}

/* Take the stamp of a file */
static void
take_stamp(const struct stat *st, FileStamp *stamp)
{
	/* Compared as bytes, padding included */
	memset(stamp, 0, sizeof(*stamp));
	stamp->device = st->st_dev;
	stamp->inode = st->st_ino;
	stamp->size = st->st_size;
	stamp->mode = st->st_mode;
	stamp->owner = st->st_uid;
	stamp->modified = st->st_mtim;
	stamp->changed = st->st_ctim;
}

/* Give the value of a hex digit, or -1 */
static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Write bytes in hex, NUL-terminated */
static void
hex_write(const uint8 *bytes, int count, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < count; i++)
	{
		*out++ = digits[bytes[i] >> 4];
		*out++ = digits[bytes[i] & 15];
	}
	*out = '\0';
}

/* Derive all that is made of a key */
static void
derive_key(const uint8 raw[KEY_LENGTH], Key *key)
{
	uint8		hash[HASH_LENGTH];
	HashPart	id_parts[] = {{id_label, strlen(id_label)}, {raw, KEY_LENGTH}};
	HashPart	fingerprint_parts[] = {{fingerprint_label, strlen(fingerprint_label)}, {raw, KEY_LENGTH}};

	/* The same number on machines of either byte order: it is in the tables */
	hash_sha256(id_parts, lengthof(id_parts), hash);
	key->key_id = (int) (((uint32) hash[0] << 24) | ((uint32) hash[1] << 16) |
						 ((uint32) hash[2] << 8) | (uint32) hash[3]);

	hash_sha256(fingerprint_parts, lengthof(fingerprint_parts), hash);
	hex_write(hash, FINGERPRINT_LENGTH / 2, key->fingerprint);

	for (int i = 0; i < KEY_PURPOSES; i++)
	{
		HashPart	part = {purpose_names[i], strlen(purpose_names[i])};

		hmac_sha256(raw, KEY_LENGTH, &part, 1, key->subkeys[i]);
	}
}

/* Read the bytes of the file; false with problem set */
static bool
read_file(const char *path, char *buffer, int *length)
{
	struct stat st;
	int			fd;
	int			got = 0;

	/* O_NONBLOCK, or a FIFO would hold us up */
	fd = BasicOpenFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		memset(&read_stamp, 0, sizeof(read_stamp));
		if (errno == ENOENT)
			strlcpy(problem, "does not exist", sizeof(problem));
		else
			snprintf(problem, sizeof(problem), "could not be opened: %m");
		return false;
	}

	/* Ask the open file, so that what is checked is what is read */
	if (fstat(fd, &st) != 0)
	{
		memset(&read_stamp, 0, sizeof(read_stamp));
		snprintf(problem, sizeof(problem), "could not be examined: %m");
		close(fd);
		return false;
	}
	take_stamp(&st, &read_stamp);
	settled = time(NULL) - st.st_mtim.tv_sec > SETTLED_AFTER_S;

	/* The rules of check_ssl_key_file_permissions in be-secure-common.c */
	if (!S_ISREG(st.st_mode))
		strlcpy(problem, "is not a regular file", sizeof(problem));
	else if (st.st_uid != geteuid() && st.st_uid != 0)
		strlcpy(problem, "must be owned by the database user or root", sizeof(problem));
	else if ((st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0) ||
			 (st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0))
		strlcpy(problem, "has group or world access (it must have mode 0600, or 0640 when owned by root)",
				sizeof(problem));
	else
	{
		/* One byte more than allowed, to see that there is more */
		while (got <= MAX_FILE_SIZE)
		{
			ssize_t		count = read(fd, buffer + got, MAX_FILE_SIZE + 1 - got);

			if (count < 0 && errno == EINTR)
				continue;
			if (count < 0)
				snprintf(problem, sizeof(problem), "could not be read: %m");
			if (count <= 0)
				break;
			got += count;
		}
		if (got > MAX_FILE_SIZE)
			snprintf(problem, sizeof(problem), "has more than %d bytes", MAX_FILE_SIZE);
	}
	close(fd);

	*length = got;
	return problem[0] == '\0';
}

/* Parse the file; gives the number of keys, or -1 with problem set */
static int
parse_file(const char *buffer, int length, uint8 raw[KEYRING_MAX_KEYS][KEY_LENGTH])
{
	const char *end = buffer + length;
	int			count = 0;
	int			line = 0;

	for (const char *p = buffer; p < end;)
	{
		const char *newline = memchr(p, '\n', end - p);
		const char *start = p;
		const char *stop = newline != NULL ? newline : end;

		line++;
		p = stop + 1;

		/* Editors leave blanks behind; copies from Windows, a CR */
		while (start < stop && (*start == ' ' || *start == '\t'))
			start++;
		while (stop > start && (stop[-1] == ' ' || stop[-1] == '\t' || stop[-1] == '\r'))
			stop--;
		if (start == stop || *start == '#')
			continue;

		if (count == KEYRING_MAX_KEYS)
		{
			snprintf(problem, sizeof(problem), "has more than %d keys", KEYRING_MAX_KEYS);
			return -1;
		}
		for (int i = 0; i < KEY_LENGTH; i++)
		{
			int			high = -1;
			int			low = -1;

			if (stop - start == HEX_LENGTH)
			{
				high = hex_value(start[2 * i]);
				low = hex_value(start[2 * i + 1]);
			}
			if (high < 0 || low < 0)
			{
				snprintf(problem, sizeof(problem), "has something other than a key of %d hex digits in line %d",
						 HEX_LENGTH, line);
				return -1;
			}
			raw[count][i] = (uint8) ((high << 4) | low);
		}
		count++;
	}

	if (count == 0)
	{
		strlcpy(problem, "has no key", sizeof(problem));
		return -1;
	}
	return count;
}

/* Put the keys of a good file in force; false with problem set */
static bool
install_keys(uint8 raw[KEYRING_MAX_KEYS][KEY_LENGTH], int count)
{
	Key			fresh[KEYRING_MAX_KEYS];
	Key		   *kept[KEYRING_MAX_KEYS];
	int			nfresh = 0;

	/* Derive all before anything changes: this can raise */
	memset(fresh, 0, sizeof(fresh));
	memset(kept, 0, sizeof(kept));
	for (int i = 0; i < count; i++)
	{
		Key		   *key = &fresh[nfresh];
		bool		twice = false;

		derive_key(raw[i], key);
		for (int j = 0; j < nfresh; j++)
		{
			if (fresh[j].key_id != key->key_id)
				continue;

			/* A repeated line is harmless; two keys of one id are not */
			twice = true;
			if (memcmp(&fresh[j], key, sizeof(Key)) != 0)
			{
				snprintf(problem, sizeof(problem), "has two keys with the same id; make another key in place of %s",
						 fresh[j].fingerprint);
				explicit_bzero(fresh, sizeof(fresh));
				return false;
			}
		}
		if (!twice)
			nfresh++;
	}

	/*
	 * A key that stays keeps its place in memory, because callers may hold
	 * pointers to its sub-keys.
	 */
	for (int i = 0; i < nfresh; i++)
	{
		for (int j = 0; j < nkeys; j++)
		{
			if (keys[j] != NULL && memcmp(keys[j], &fresh[i], sizeof(Key)) == 0)
			{
				kept[i] = keys[j];
				keys[j] = NULL;
				break;
			}
		}
	}

	/* Wipe those that are gone */
	for (int i = 0; i < nkeys; i++)
	{
		if (keys[i] != NULL)
		{
			explicit_bzero(keys[i], sizeof(Key));
			pfree(keys[i]);
		}
	}
	nkeys = 0;

	/* nkeys counts what is whole, should there be no memory for one */
	for (int i = 0; i < nfresh; i++)
	{
		if (kept[i] == NULL)
		{
			kept[i] = MemoryContextAlloc(TopMemoryContext, sizeof(Key));
			memcpy(kept[i], &fresh[i], sizeof(Key));
		}
		keys[i] = kept[i];
		nkeys = i + 1;
	}
	explicit_bzero(fresh, sizeof(fresh));
	return true;
}

/* Read the file */
static void
load_file(const char *path)
{
	char		buffer[MAX_FILE_SIZE + 1];
	uint8		raw[KEYRING_MAX_KEYS][KEY_LENGTH];
	int			length = 0;
	int			count = -1;

	/* An error on the way means that the file was not looked at */
	looked = false;
	settled = true;
	problem[0] = '\0';

	if (read_file(path, buffer, &length))
		count = parse_file(buffer, length, raw);
	explicit_bzero(buffer, sizeof(buffer));
	if (count > 0)
		(void) install_keys(raw, count);
	explicit_bzero(raw, sizeof(raw));
	looked = true;
}

/* Take in a change of the file */
static void
refresh(bool force)
{
	char		path[MAXPGPATH];
	struct stat st;
	FileStamp	stamp;
	FileStamp	old_stamp;
	bool		had_looked = looked;
	char		old_problem[sizeof(problem)];

	key_file_path(path);
	memset(&stamp, 0, sizeof(stamp));
	if (stat(path, &st) == 0)
		take_stamp(&st, &stamp);

	/* A stamp of zeros is that of a file that cannot be seen */
	if (looked && settled && !force && memcmp(&stamp, &read_stamp, sizeof(stamp)) == 0)
		return;

	memcpy(&old_stamp, &read_stamp, sizeof(old_stamp));
	strlcpy(old_problem, problem, sizeof(old_problem));
	load_file(path);

	/*
	 * With no keys left to work on with, the caller raises. Else say it once
	 * for each change of the file. The name is as set: whoever sees the
	 * message need not know where the data directory is.
	 */
	if (problem[0] != '\0' && nkeys > 0 &&
		!(had_looked && strcmp(problem, old_problem) == 0 &&
		  memcmp(&read_stamp, &old_stamp, sizeof(old_stamp)) == 0))
		ereport(WARNING,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("key file \"%s\" %s", otp_key_file, problem),
				 errdetail("The keys read from it earlier stay in force in this process. New processes have none."),
				 errhint("Correct the file, or restore it."),
				 errhidestmt(true),
				 errhidecontext(true)));
}

/* Find a key */
static Key *
find_key(int key_id)
{
	for (int i = 0; i < nkeys; i++)
	{
		if (keys[i]->key_id == key_id)
			return keys[i];
	}
	return NULL;
}

/* Find a key, looking into the file again if need be */
static Key *
find_key_afresh(int key_id)
{
	Key		   *key;

	refresh(false);
	key = find_key(key_id);
	if (key == NULL)
	{
		refresh(true);
		key = find_key(key_id);
	}
	return key;
}

/* Raise that there is no key at all */
static void
raise_no_keys(void)
{
	keyring_raise(psprintf("The key file \"%s\" %s. Correct that, or copy the key file of the server that this database comes from, with its mode and owner.",
						   otp_key_file, problem));
}

/* Find a key, or raise */
static Key *
require_key(int key_id)
{
	Key		   *key = find_key_afresh(key_id);

	if (key == NULL)
	{
		StringInfoData fingerprints;

		if (nkeys == 0)
			raise_no_keys();

		initStringInfo(&fingerprints);
		for (int i = 0; i < nkeys; i++)
			appendStringInfo(&fingerprints, "%s%s", i > 0 ? ", " : "", keys[i]->fingerprint);
		keyring_raise(psprintf("The key file \"%s\" has the keys with the fingerprints %s, but this was made with another one, whose fingerprint otp.keys shows at key_id %d. Copy its line from the key file of the server that made it.",
							   otp_key_file, fingerprints.data, key_id));
	}
	return key;
}

/* Sync a directory to disk */
static bool
sync_directory_of(const char *path)
{
	char		directory[MAXPGPATH];
	int			fd;
	bool		good;

	strlcpy(directory, path, sizeof(directory));
	get_parent_directory(directory);
	if (directory[0] == '\0')
		strlcpy(directory, "/", sizeof(directory));

	fd = BasicOpenFile(directory, O_RDONLY | PG_BINARY);
	if (fd < 0)
		return false;

	/* Some file systems cannot sync a directory, and need not */
	good = pg_fsync(fd) == 0 || errno == EBADF || errno == EINVAL;
	close(fd);
	return good;
}

/* Warn that the file could not be made */
static void
warn_not_created(const char *what)
{
	ereport(WARNING,
			(errcode_for_file_access(),
			 errmsg("could not %s key file \"%s\": %m", what, otp_key_file),
			 errhint("Make the file by hand, or correct otp.key_file. Until then nothing can be sent or verified.")));
}

/* Make the file */
void
keyring_create_file_if_missing(void)
{
	static const char comment[] =
	"# Key of the PostgreSQL extension otp. Without it no code can be sent or verified.\n"
	"# Copy this file to every node of the cluster, with mode 0600, but keep it out of backups.\n"
	"# To rotate, put a new line of 64 hex digits above the old one; keep the old one.\n";
	char		path[MAXPGPATH];
	char		text[sizeof(comment) + HEX_LENGTH + 1];
	uint8		raw[KEY_LENGTH];
	struct stat st;
	int			length;
	int			written;
	int			fd;

	/* Only where a cluster starts for good; not in single-user mode */
	if (!IsPostmasterEnvironment || IsUnderPostmaster || IsBinaryUpgrade)
		return;
	if (otp_key_file == NULL || otp_key_file[0] == '\0')
		return;

	/* A standby's or a restored server's key must come from the primary */
	if (stat(STANDBY_SIGNAL_FILE, &st) == 0 || stat(RECOVERY_SIGNAL_FILE, &st) == 0)
		return;

	/* O_EXCL: whatever is there, a dangling link too, is never touched */
	key_file_path(path);
	fd = BasicOpenFilePerm(path, O_WRONLY | O_CREAT | O_EXCL | PG_BINARY, S_IRUSR | S_IWUSR);
	if (fd < 0)
	{
		if (errno != EEXIST)
			warn_not_created("create");
		return;
	}

	if (!pg_strong_random(raw, sizeof(raw)))
	{
		close(fd);
		unlink(path);
		ereport(WARNING,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random key for key file \"%s\"", otp_key_file)));
		return;
	}
	memcpy(text, comment, strlen(comment));
	hex_write(raw, KEY_LENGTH, text + strlen(comment));
	length = strlen(comment) + HEX_LENGTH;
	text[length++] = '\n';

	/* On disk for good before anything can be made with it */
	errno = 0;
	written = write(fd, text, length);
	explicit_bzero(raw, sizeof(raw));
	explicit_bzero(text, sizeof(text));
	if (written != length || pg_fsync(fd) != 0)
	{
		int			save_errno = errno != 0 ? errno : ENOSPC;

		close(fd);
		unlink(path);
		errno = save_errno;
		warn_not_created("write");
		return;
	}
	close(fd);
	if (!sync_directory_of(path))
		warn_not_created("sync the directory of");

	ereport(LOG,
			(errmsg("created key file \"%s\" for extension \"otp\"", otp_key_file),
			 errhint("Copy it to every standby, and keep a copy in a safe place that is not the backup.")));
}

/* Tell whether there is a key */
bool
keyring_available(char **why)
{
	refresh(false);
	*why = problem[0] != '\0' ? psprintf("key file \"%s\" %s", otp_key_file, problem) : NULL;
	return nkeys > 0;
}

/* Give the current key */
int
keyring_current(void)
{
	refresh(false);
	if (nkeys == 0)
		raise_no_keys();
	return keys[0]->key_id;
}

/* Look for a key */
bool
keyring_has(int key_id)
{
	return find_key_afresh(key_id) != NULL;
}

/* Write a fingerprint */
void
keyring_fingerprint(int key_id, char out[FINGERPRINT_LENGTH + 1])
{
	memcpy(out, require_key(key_id)->fingerprint, FINGERPRINT_LENGTH + 1);
}

/* List the keys */
int
keyring_ids(int *ids, int max)
{
	int			count;

	refresh(false);
	count = Min(nkeys, max);
	for (int i = 0; i < count; i++)
		ids[i] = keys[i]->key_id;
	return count;
}

/* Give a sub-key */
const uint8 *
keyring_subkey(int key_id, KeyPurpose purpose)
{
	return require_key(key_id)->subkeys[purpose];
}

/* Raise that a key is not there */
void
keyring_raise(const char *why)
{
	error_raise(OTP_KEY_UNAVAILABLE, "the key of this database is not in the key file",
				why, -1, NULL);
}
