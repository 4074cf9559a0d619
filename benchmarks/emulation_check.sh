#!/usr/bin/env bash
# Checks the emulated engines of emulated_fleet.sh: plays the same traces with real llama.cpp servers, one on each core,
# and with emulated ones of the same speed, and prints the differences. Takes about 35 minutes; one trace 10.
#   benchmarks/emulation_check.sh [--traces NAMES] [--targets NAMES] [--seeds NUMBERS] [--seconds S] [--scale PART]
#                                 [--rate FACTOR] [--json FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install demo
miss_programs nginx
install_peers vllm-router smg
PYTHONPATH="benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m emulation.check "$@"
