#!/usr/bin/env bash
# Checks the locked packages against the Python Packaging Advisory Database. Fails on a known vulnerability, and if a
# package cannot be looked up. Not part of test.sh, which needs no online service except a package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

readonly tool='pip-audit>=2.9,<3'
if [[ "$(cat .venv-audit/installed 2>/dev/null)" != "$tool" ]]; then
  "$(find_python)" -m venv --clear .venv-audit
  .venv-audit/bin/pip install --quiet --disable-pip-version-check "$tool"
  echo "$tool" > .venv-audit/installed
fi
exec .venv-audit/bin/pip-audit --requirement requirements.txt --require-hashes --disable-pip --strict "$@"
