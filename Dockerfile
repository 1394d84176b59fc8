# Two images from one file:  docker build --target server -t tonnage-server .
#                            docker build --target agent -t tonnage-agent .
# Everything installed is pinned by hash; pip, the build backend and the sources stay in the stages that are thrown away.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN pip install --require-hashes --only-binary :all: --requirement requirements/build.txt
COPY pyproject.toml README.md ./
COPY app app
COPY alembic alembic
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Dependencies come before the wheel: a change of code alone rebuilds one small layer.
FROM ${PYTHON_IMAGE} AS server-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_PYTHON=/opt/tonnage/bin/python
RUN python -m venv --without-pip /opt/tonnage
COPY requirements/server.txt /requirements.txt
RUN pip install --require-hashes --only-binary :all: --requirement /requirements.txt
COPY --from=builder /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl

FROM ${PYTHON_IMAGE} AS agent-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_PYTHON=/opt/tonnage/bin/python
RUN python -m venv --without-pip /opt/tonnage
COPY requirements/agent.txt /requirements.txt
RUN pip install --require-hashes --only-binary :all: --requirement /requirements.txt
COPY --from=builder /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl

# What both images are when they run. The user is named in /etc/passwd, since libpq and initdb ask for a name,
# and given by number, so that an orchestrator can see that it is not root.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 tonnage \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tonnage --shell /usr/sbin/nologin tonnage \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/tonnage
ENV PATH=/opt/tonnage/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /var/lib/tonnage
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["tonnage"]

FROM runtime AS agent
COPY --from=agent-venv /opt/tonnage /opt/tonnage
ENV TONNAGE_AGENT_STATE_DIR=/var/lib/tonnage
CMD ["agent"]

FROM runtime AS server
COPY --from=server-venv /opt/tonnage /opt/tonnage
ENV TONNAGE_DATA_DIR=/var/lib/tonnage TONNAGE_HOST=0.0.0.0 TONNAGE_PORT=8000
EXPOSE 8000
# http.client, not urllib: a proxy that Docker puts into the environment must not be asked about this very container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['TONNAGE_PORT']), timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["serve"]
