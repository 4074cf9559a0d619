#!/usr/bin/env bash
# The quick checks, for every change: format, lint, types, import layers, and the tests of single parts. Under 90 s on two cores.
# scripts/test.sh runs these and the tests of the whole program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
unset PYTHONDONTWRITEBYTECODE # else every process compiles all modules again

install demo,test
export PATH=$PWD/.venv/bin:$PATH
static_checks
set -x
exec python -m pytest --numprocesses "$(($(nproc) * 2))" --dist worksteal tests/unit tests/contracts tests/corpus tests/fuzz tests/cost
