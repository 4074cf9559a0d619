#!/usr/bin/env bash
# Installs what the tests need into .venv and runs every check there is. With arguments: only pytest, with these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install demo,test
export PATH=$PWD/.venv/bin:$PATH
if [[ "$#" -gt 0 ]]; then
  exec pytest "$@"
fi
set -x
ruff format --check .
ruff check .
mypy
lint-imports
pytest --cov --cov-report=term
