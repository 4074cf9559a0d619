#!/usr/bin/env bash
# Runs NGINX with the configuration in nginx/ in front of the proxy and two real llama.cpp servers. No part of test.sh, as
# NGINX is no Python package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/venv.sh
export PATH=$PATH:/usr/sbin # Debian's place for daemons
for program in nginx openssl; do
  command -v "$program" >/dev/null || fail "needs $program: try 'apt install nginx openssl'"
done
install demo,test
exec .venv/bin/python -m pytest -m nginx tests/nginx "$@"
