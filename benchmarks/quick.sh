#!/usr/bin/env bash
# Measures the cost of a request and of a streamed event for this proxy, vllm-router and nginx, one core each, in turn.
# Takes less than 3 minutes. A subset of run.sh, with the same requirements and options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs nginx
install_peers vllm-router
measure --targets inference-proxy,vllm-router,nginx \
  --steps requests-1kb,requests-20kb,latency-1,events-256 --json quick.json "$@"
