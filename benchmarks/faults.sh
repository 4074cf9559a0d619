#!/usr/bin/env bash
# How proxies behave when engines fail: this one, HAProxy, nginx, vllm-router and smg, side by side. Some nine minutes.
#   benchmarks/faults.sh [SCENARIOS] [TARGETS] [--json FILE]     such as: faults.sh ABD inference-proxy,smg
# A peer that is not installed here, and cannot be, has a row that says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
source benchmarks/peers.sh

for program in haproxy nginx; do
  command -v "$program" >/dev/null || echo "faults.sh: no $program on the PATH (try 'apt install $program')" >&2
done
install ''
for peer in .venv-peers=vllm-router==0.1.17 .venv-peers-smg=smg==1.13.0; do
  install_peer "${peer%%=*}" "${peer#*=}" || echo "faults.sh: cannot install ${peer#*=}" >&2
done
# Last on the PATH: these folders have a python of their own, too.
PATH="$PATH:$PWD/.venv-peers/bin:$PWD/.venv-peers-smg/bin" exec .venv/bin/python benchmarks/fault_suite.py "$@"
