EXTENSION = otp
MODULE_big = otp
DATA = $(wildcard sql/otp--*.sql)

OBJS = $(sort $(patsubst %.c,%.o,$(wildcard src/*.c src/*/*.c)))

TESTS = $(wildcard test/sql/*.sql)
REGRESS = $(patsubst test/sql/%.sql,%,$(TESTS))
REGRESS_OPTS = --inputdir=test --outputdir=test/output --expecteddir=.

# Hidden symbols cannot clash with another library's
PG_CPPFLAGS = -I$(srcdir)/src -D_GNU_SOURCE
PG_CFLAGS = -fvisibility=hidden
SHLIB_LINK = -lcurl -ljansson

# Nothing here is worth inlining into a query
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# A header may be included from anywhere
$(OBJS): $(wildcard src/*.h src/*/*.h)

.PHONY: check-all bench demo simulator
