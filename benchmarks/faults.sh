#!/usr/bin/env bash
# Compares how this proxy, HAProxy, nginx, vllm-router and smg behave when engines fail. Takes about 9 minutes.
#   benchmarks/faults.sh [SCENARIOS] [TARGETS] [--json FILE]     for example: faults.sh ABD inference-proxy,smg
# The row of a peer that cannot be installed says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs haproxy nginx
install_peers vllm-router smg
PYTHONPATH=benchmarks exec .venv/bin/python -m engine_faults "$@"
