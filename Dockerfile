ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
COPY requirements.txt ./
# Wheels only, so that neither stage needs a compiler. The environment itself needs no pip.
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --require-hashes --only-binary :all: -r requirements.txt
COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps .

FROM ${BASE}
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HOST=0.0.0.0 PORT=8888
# A numeric user, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /
EXPOSE 8888
# Without proxies: an HTTP_PROXY that Docker passes to containers cannot reach this container's localhost.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import os, ssl, urllib.request as r; s = 's' * ('TLS_CERT_FILE' in os.environ); c = ssl._create_unverified_context(); r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=c)).open(f'http{s}://localhost:' + os.environ['PORT'] + '/livez', timeout=4)"]
# In exec form, without a shell, so that SIGTERM reaches the proxy, which then finishes running requests.
CMD ["inference-proxy", "serve"]
