#!/usr/bin/env bash
# What a request and a streamed event cost: this proxy, vllm-router and nginx, one core each, in turn. Below three minutes.
# A part of run.sh, with its needs and its options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

install ''
miss_programs nginx
install_peers vllm-router
measure --targets inference-proxy,vllm-router,nginx \
  --steps requests-1kb,requests-20kb,latency-1,events-256 --json quick.json "$@"
