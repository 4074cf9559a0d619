#!/usr/bin/env bash
# Compares real proxies in front of emulated engines, which take the time of the simulation's cost model but hardly any
# CPU. Each run takes --seconds and about 35 s more. Leaves out peers that cannot be installed.
#   benchmarks/emulated_fleet.sh [--traces NAMES] [--engines SIZES] [--targets NAMES] [--seeds NUMBERS] [--seconds S]
#                                [--requests N] [--json FILE] [--svg FILE] [--document] [--list]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs nginx
install_peers vllm-router smg
ulimit -n "$(ulimit -Hn)" # each request in flight takes four: at the client, on both sides of the proxy, at the engine
PYTHONPATH="benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m emulation "$@"
