# shellcheck shell=bash
# Sends the request corpus and mutations of it through the proxy to real HTTP servers: no server may see a request that
# was not forwarded. Installs aiohttp and httptools into .venv.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need nginx nginx
need haproxy haproxy
install differential,test
exec .venv/bin/python -m pytest tests/differential "$@"
