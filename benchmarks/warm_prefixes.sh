#!/usr/bin/env bash
# Warm prefixes with real engines: four llama.cpp servers behind this proxy, smg, vllm-router and nginx, side by side.
# Some 25 minutes on two cores, --quick four. A peer that is not installed here, and cannot be, is left out.
#   benchmarks/warm_prefixes.sh [--workloads NAMES] [--targets NAMES] [--repetitions N] [--quick] [--json FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install demo
miss_programs nginx
install_peers vllm-router smg
PYTHONPATH="benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m warm_prefixes "$@"
