#!/usr/bin/env bash
# Measures prefix reuse with real engines: four llama.cpp servers behind this proxy, smg, vllm-router and nginx, in turn.
# Takes about 25 minutes on two cores, with --quick 4. Leaves out peers that cannot be installed.
#   benchmarks/warm_prefixes.sh [--workloads NAMES] [--targets NAMES] [--repetitions N] [--quick] [--json FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install demo
miss_programs nginx
install_peers vllm-router smg
PYTHONPATH="benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m warm_prefixes "$@"
