#!/usr/bin/env bash
# Soak test: runs the proxy in front of real llama.cpp servers and scripted engines, which are killed, frozen and made to
# fail at random, with all kinds of clients at once. Fails on leaked requests, files or memory, and on errors.
# Usage: scripts/soak.sh MINUTES [--seed N]      --seed: repeat the random choices of another run, as far as time allows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

[[ "${1-}" =~ ^[1-9][0-9]*$ ]] || fail "expected a number of minutes, not '${1-}'"
install demo,test
PYTHONPATH=$PWD/tests exec .venv/bin/python -m soak "$@"
