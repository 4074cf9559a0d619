#!/usr/bin/env bash
# Compares balancing policies in a simulation. Takes about 10 minutes on two cores, with --quick less than 1.
#   benchmarks/balance.sh [--set fleets|use-cases|replicas] [--traces NAMES] [--policies NAMES] [--seed N | --held-out] [--quick]
#                         [--json FILE] [--svg FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install ''
# Conversations are found by hashes of bytes, which Python varies between processes.
export PYTHONHASHSEED=0
exec .venv/bin/python benchmarks/balance_suite.py "$@"
