#!/usr/bin/env bash
# Start the proxy from a fresh checkout: needs Python 3.11+ and nothing else.
# Without a .env file and without BACKENDS it starts the demo. Arguments go to `inference-proxy`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "run.sh: $*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or newer, and found none on the PATH"
}

# Once per version of pyproject.toml and place of the checkout; the stamp is written last, so a broken
# installation is tried again.
install() { # $1: what to give to pip, $2: stamp file
  local wanted python
  wanted="$(cksum < pyproject.toml) $PWD"
  if [[ "$(cat "$2" 2>/dev/null)" == "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null; then return; fi
  python="$(find_python)"
  "$python" -c 'import ensurepip' 2>/dev/null || fail "$python lacks ensurepip: try 'apt install python3-venv'"
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --disable-pip-version-check --editable "$1"
  echo "$wanted" > "$2"
}

if [[ -e .env || -n "${BACKENDS-}" ]]; then
  install . .venv/installed
  exec .venv/bin/inference-proxy serve "$@"
fi
echo "No .env file and no BACKENDS: starting the demo (the first time downloads about 285 MB)."
install '.[demo]' .venv/installed-demo
cp .venv/installed-demo .venv/installed # the demo's installation contains the other one
exec .venv/bin/inference-proxy demo "$@"
