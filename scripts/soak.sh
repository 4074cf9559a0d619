#!/usr/bin/env bash
# Runs the proxy for some minutes before real llama.cpp servers and scripted engines that are killed, frozen and told to fail at
# random, with every kind of client at once; then looks for what is left: requests, files, memory, errors. Fails when something is.
# Usage: scripts/soak.sh MINUTES [--seed N]      --seed: do what another run did, as far as time allows
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

[[ "${1-}" =~ ^[1-9][0-9]*$ ]] || fail "takes a number of minutes, not '${1-}'"
install demo,test
PYTHONPATH=$PWD/tests exec .venv/bin/python -m soak "$@"
