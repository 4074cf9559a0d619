#!/usr/bin/env bash
# Measures the cost of this proxy and seven others: CPU, latency, memory, streams, fleets. One core each, in turn; 3
# rounds take about 40 minutes. Needs a C compiler and two cores; leaves out peers that cannot be installed.
#   benchmarks/run.sh [--rounds N] [--targets A,B] [--steps X,Y] [--json FILE]     --help lists targets and steps
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs nginx haproxy
install_peers vllm-router smg envoy classic litellm
measure "$@"
