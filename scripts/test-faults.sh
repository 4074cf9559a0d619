#!/usr/bin/env bash
# The failures of engines and clients that take long to play through: waits of real length, thousands of repetitions.
# Some minutes, on loopback. No part of test.sh, which plays all others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/venv.sh
install demo,test
exec .venv/bin/python -m pytest -m slow_faults tests/faults "$@"
