# syntax=docker/dockerfile:1.7
# Two images: `desk`, which every service of docker-compose.yaml runs, and `trial`, PayMe's world for trying it out.
# The packages are the locked ones, in an environment of their own beside what the base image brings.
ARG BASE=apache/airflow:slim-3.3.2-python3.12

# --- packages: made here, copied below, so that pip and its cache stay behind -----------------------------------------
FROM ${BASE} AS packages
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-euc"]
COPY requirements.txt /build/
RUN python -m venv --without-pip /opt/payme-ops/venv \
 && python -m pip --python /opt/payme-ops/venv/bin/python install --no-cache-dir --require-hashes --no-deps \
      -r /build/requirements.txt \
 && echo /opt/payme-ops/plugins > "$(/opt/payme-ops/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/payme_ops.pth"
USER 50000

# --- desk: what runs in production -----------------------------------------------------------------------------------
FROM ${BASE} AS desk
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-euc"]
COPY docker/install-postgres /build/
# A dump wants the client of the server's own major version, a restore test a throw-away server of that version.
RUN /build/install-postgres 15 16 17 18 && rm -r /build \
 && install -d -o airflow -g 0 -m 0700 /var/lib/payme-ops /var/log/airflow
COPY --from=packages /opt/payme-ops/venv /opt/payme-ops/venv
COPY dags /opt/payme-ops/dags
COPY plugins /opt/payme-ops/plugins
COPY include /opt/payme-ops/include
COPY docs/runbooks /opt/payme-ops/docs/runbooks
COPY docker /opt/payme-ops/docker
RUN /opt/payme-ops/venv/bin/python -m compileall -q /opt/payme-ops/plugins
ENV PATH=/opt/payme-ops/venv/bin:${PATH} \
    VIRTUAL_ENV=/opt/payme-ops/venv \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/payme-ops/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/payme-ops/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=false \
    PYTHONDONTWRITEBYTECODE=1 \
    # A signal goes to the main process alone: a Celery worker then ends its tasks before itself.
    DUMB_INIT_SETSID=0
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="payme-ops" \
      org.opencontainers.image.description="PayMe's operations desk: backups, migrations and releases by Apache Airflow" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE}"
WORKDIR /opt/payme-ops
USER 50000
# The commands are written out in docker-compose.yaml; the base image's entrypoint would wait and migrate by itself.
ENTRYPOINT ["/usr/bin/dumb-init", "--"]
CMD ["python", "-m", "payme_ops", "--help"]

# --- trial: PayMe's world for trying it out; never in production -------------------------------------------------------
FROM desk AS trial
USER 0
COPY requirements-dev.txt /build/
RUN /home/airflow/.local/bin/python -m pip --python /opt/payme-ops/venv/bin/python install --no-cache-dir \
      --require-hashes --no-deps -r /build/requirements-dev.txt && rm -r /build
COPY sandbox /opt/payme-ops/sandbox
USER 50000
