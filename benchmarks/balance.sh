#!/usr/bin/env bash
# Compares balancing policies in a simulation. Takes about 10 minutes on two cores, with --quick less than 1.
#   benchmarks/balance.sh [--set fleets|use-cases] [--traces NAMES] [--policies NAMES] [--seed N | --held-out] [--quick]
#                         [--json FILE] [--svg FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install ''
exec .venv/bin/python benchmarks/balance_suite.py "$@"
