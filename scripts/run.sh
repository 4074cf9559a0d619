#!/usr/bin/env bash
# Start the proxy from a fresh checkout: needs Python 3.11+ and nothing else.
# Without a .env file and without BACKENDS it starts the demo. Arguments go to `inference-proxy`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

if [[ -e .env || -n "${BACKENDS-}" ]]; then
  install ''
  exec .venv/bin/inference-proxy serve "$@"
fi
echo "No .env file and no BACKENDS: starting the demo (the first time downloads about 285 MB)."
install demo
exec .venv/bin/inference-proxy demo "$@"
