#!/usr/bin/env bash
# A thousand slow clients at a time, with slow headers, slow bodies and slow reading, while another one measures how long it waits:
# its p99 must stay below twice of that at a proxy that nobody attacks. Below two minutes, on loopback. No part of test.sh, as
# slowhttptest is no Python package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/venv.sh
command -v slowhttptest >/dev/null || fail "needs slowhttptest: try 'apt install slowhttptest'"
install demo,test
exec .venv/bin/python -m pytest -m slow_clients tests/slow_clients "$@"
