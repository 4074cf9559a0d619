#!/usr/bin/env bash
# Installs what the tests need into .venv and runs every check there is. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/venv.sh
make_venv
install '.[demo]' --group test

step() { printf '\n== %s\n' "$*"; "$@"; }
step .venv/bin/ruff format --check .
step .venv/bin/ruff check .
step .venv/bin/mypy
step .venv/bin/lint-imports
if [ "$#" -gt 0 ]; then
  step .venv/bin/python -m pytest "$@"
else
  step .venv/bin/python -m pytest --cov --cov-report=term
fi
