#!/usr/bin/env bash
# How ways of choosing a backend compare, in a simulation: some ten minutes on two cores, --quick below one.
#   benchmarks/balance.sh [--traces NAMES] [--policies NAMES] [--seed N] [--quick] [--json FILE] [--svg FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install ''
exec .venv/bin/python benchmarks/balance_suite.py "$@"
