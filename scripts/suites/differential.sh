# shellcheck shell=bash
# Sends the request corpus and mutations of it through the proxy to real HTTP servers: none may see another request than was
# passed on. Installs aiohttp and httptools into .venv.
export PATH=$PATH:/usr/sbin # Debian's place for daemons
need nginx nginx
need haproxy haproxy
install differential,test
exec .venv/bin/python -m pytest tests/differential "$@"
