#!/usr/bin/env bash
# Asks the Python Packaging Advisory Database for known weaknesses of the locked packages. Fails when one is known, and when
# a package could not be looked up. No part of test.sh, which needs no service but a package index.
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
