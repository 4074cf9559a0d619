#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them.
#
# scripts/test.sh                   all checks: format, lint, types, import layers, and every test that needs only Python packages
# scripts/test.sh --coverage        the same, and measures how much of the code the tests run
# scripts/test.sh SUITE [ARGUMENT]  a suite that takes long or needs other programs: scripts/suites/SUITE.sh describes it
# scripts/test.sh PATH|OPTION...    only pytest, with these arguments: scripts/test.sh tests/unit/wire -k framing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh
unset PYTHONDONTWRITEBYTECODE # else every process compiles all modules again

if [[ -f "scripts/suites/${1-}.sh" ]]; then
  suite="$1"
  shift
  # shellcheck source=/dev/null
  source "scripts/suites/$suite.sh"
  exit
fi

install demo,test
export PATH=$PWD/.venv/bin:$PATH
coverage=()
if [[ "${1-}" == --coverage ]]; then
  coverage=(--cov --cov-report=term)
  shift
fi
if [[ "$#" -gt 0 ]]; then
  exec python -m pytest "${coverage[@]}" "$@"
fi
static_checks
# More processes than cores: many tests wait. With even more, tests of deadlines would wait for a core.
python -m pytest --cache-clear --numprocesses "$(($(nproc) + 4))" --dist worksteal "${coverage[@]}" && exit
status=$?
# Where all cores are busy, a test of a deadline can fail without a defect. So a few failed tests run again, alone.
failed=$(python -m pytest --last-failed --last-failed-no-failures none --collect-only | grep -c ::) || true
if [[ "$status" != 1 || "$failed" -gt 3 ]]; then
  exit "$status"
fi
echo "$failed of the tests failed. Each runs again, alone; a test that passes now depends on the speed of the machine, which is a defect of the test."
exec python -m pytest --last-failed --last-failed-no-failures none -v
