#!/usr/bin/env bash
# Starts the proxy from a fresh checkout; needs only Python 3.11 or newer. Without a .env file and BACKENDS, starts the
# demo. Arguments are passed to `inference-proxy`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

if [[ -e .env || -n "${BACKENDS-}" ]]; then
  install ''
  exec .venv/bin/inference-proxy serve "$@"
fi
echo "No .env file and no BACKENDS: starting the demo (downloads about 285 MB the first time)."
install demo
exec .venv/bin/inference-proxy demo "$@"
