# The official PostgreSQL image with otp in it.
#
#	docker build -t otp .                              # or --build-arg PG_MAJOR=15
#	docker run --name otp -e POSTGRES_PASSWORD=... -v otp:/var/lib/postgresql/data otp
#
# The first start creates the extension in POSTGRES_DB, and the key file in
# the data directory: keep a copy of otp.key.

ARG PG_MAJOR=17
FROM postgres:${PG_MAJOR}-bookworm AS build
ARG PG_MAJOR
RUN apt-get update && apt-get install -y --no-install-recommends \
	gcc libc6-dev libcurl4-openssl-dev libjansson-dev libmicrohttpd-dev make postgresql-server-dev-${PG_MAJOR}
COPY Makefile otp.control /otp/
COPY sql /otp/sql
COPY src /otp/src
RUN rm -f /otp/src/*.o /otp/src/*/*.o && make -C /otp && make -C /otp install DESTDIR=/installed

FROM postgres:${PG_MAJOR}-bookworm
RUN apt-get update \
	&& apt-get install -y --no-install-recommends ca-certificates libcurl4 libjansson4 libmicrohttpd12 \
	&& rm -rf /var/lib/apt/lists/*
COPY --from=build /installed /
RUN printf '%s\n' 'REVOKE CREATE ON SCHEMA public FROM PUBLIC;' 'CREATE EXTENSION otp CASCADE;' \
	> /docker-entrypoint-initdb.d/otp.sql
CMD ["postgres", "-c", "shared_preload_libraries=otp"]
