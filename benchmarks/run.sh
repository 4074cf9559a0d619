#!/usr/bin/env bash
# What this proxy costs beside seven others: CPU, latency, memory, streams, fleets. One core each, in turn; 3 rounds take
# some 40 minutes. Needs a C compiler and two cores; leaves out what is not installed here and cannot be.
#   benchmarks/run.sh [--rounds N] [--targets A,B] [--steps X,Y] [--json FILE]     --help names all of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs nginx haproxy
install_peers vllm-router smg envoy classic litellm
measure "$@"
