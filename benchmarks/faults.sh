#!/usr/bin/env bash
# How proxies behave when engines fail: this one, HAProxy, nginx, vllm-router and smg, side by side. Some nine minutes.
#   benchmarks/faults.sh [SCENARIOS] [TARGETS] [--json FILE]     such as: faults.sh ABD inference-proxy,smg
# A peer that is not installed here, and cannot be, has a row that says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs haproxy nginx
install_peers vllm-router smg
PYTHONPATH=benchmarks exec .venv/bin/python -m engine_faults "$@"
