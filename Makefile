EXTENSION = otp
MODULE_big = otp
DATA = $(wildcard sql/otp--*.sql)

OBJS = $(sort $(patsubst %.c,%.o,$(wildcard src/*.c src/*/*.c)))

# The HTTP API needs libmicrohttpd; "make WITH_HTTP=no" does without both
WITH_HTTP ?= yes
ifeq ($(WITH_HTTP),no)
OBJS := $(filter-out src/listener/%,$(OBJS))
endif

TESTS = $(wildcard test/sql/*.sql)
REGRESS = $(patsubst test/sql/%.sql,%,$(TESTS))
REGRESS_OPTS = --inputdir=test

# The version stands in otp.control alone
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" $(or $(srcdir),.)/otp.control)

# Hidden symbols cannot clash with another library's
PG_CPPFLAGS = -I$(srcdir)/src -D_GNU_SOURCE -DOTP_VERSION='"$(EXTVERSION)"'
PG_CFLAGS = -fvisibility=hidden
SHLIB_LINK = -lcurl -ljansson
ifneq ($(WITH_HTTP),no)
PG_CPPFLAGS += -DOTP_WITH_HTTP
SHLIB_LINK += -lmicrohttpd
endif

# Nothing here is worth inlining into a query
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# The document of the HTTP API becomes a part of the library
src/listener/monitor.o: src/listener/openapi_json.inc
src/listener/openapi_json.inc: src/listener/openapi.json otp.control
	{ echo 'static const char openapi_json[] ='; \
	sed -e 's/@VERSION@/$(EXTVERSION)/' -e 's/^\t*//' -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $<; echo ';'; } >$@

# A header may be included from anywhere
$(OBJS): $(wildcard src/*.h src/*/*.h)

# ---------- for those who work on it ----------

# Everything, on throw-away servers; "make check" is PGXS's own
check-all:
	test/check

demo:
	test/demo

bench:
	test/bench/run

simulator:
	$(MAKE) -C test/simulator

# PGXN wants three numbers
PGXN_VERSION = $(shell echo $(EXTVERSION) | sed 's/^[0-9]*\.[0-9]*$$/&.0/')

META.json: META.json.in otp.control
	sed -e 's/@VERSION@/$(EXTVERSION)/' -e 's/@PGXN_VERSION@/$(PGXN_VERSION)/' $< >$@

# The archive that PGXN takes
dist: META.json
	git archive --format=zip --prefix=otp-delivery-$(PGXN_VERSION)/ --add-file=META.json \
		-o otp-delivery-$(PGXN_VERSION).zip HEAD

clean: clean-made
clean-made:
	rm -f META.json otp-delivery-*.zip src/listener/openapi_json.inc
	$(MAKE) -C test/simulator clean

.PHONY: check-all bench clean-made demo dist simulator
