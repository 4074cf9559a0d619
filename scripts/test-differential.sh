#!/usr/bin/env bash
# Sends the request corpus and mutations of it through the proxy before real HTTP servers: none may see another request
# than was passed on. Installs aiohttp and httptools into .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/venv.sh
export PATH=$PATH:/usr/sbin # Debian's place for daemons
for program in nginx haproxy; do
  command -v "$program" >/dev/null || fail "needs $program: try 'apt install nginx haproxy'"
done
install differential,test
exec .venv/bin/python -m pytest -m differential tests/differential "$@"
