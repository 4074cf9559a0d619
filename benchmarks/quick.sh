#!/usr/bin/env bash
# What a request and a streamed event cost: this proxy, vllm-router and nginx, one core each, in turn. Below three minutes.
# Needs a C compiler and two cores; leaves out nginx where it is not installed. Options: --rounds N, --json FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

readonly peers=.venv-peers router=vllm-router==0.1.17
command -v cc >/dev/null || fail "needs a C compiler: try 'apt install gcc libc6-dev'"
command -v nginx >/dev/null || echo "quick.sh: no nginx on the PATH (try 'apt install nginx'): measuring without it" >&2

install ''
if [[ "$(cat "$peers/installed" 2>/dev/null)" != "$router" ]]; then
  "$(find_python)" -m venv --clear "$peers"
  "$peers/bin/pip" install --disable-pip-version-check "$router"
  echo "$router" > "$peers/installed"
fi
programs="$(mktemp -d)"
trap 'rm -r "$programs"' EXIT
for program in engine client; do
  cc -O2 -Wall -Wextra -o "$programs/$program" "benchmarks/$program.c"
done
.venv/bin/python benchmarks/quick.py --programs "$programs" --peers "$PWD/$peers/bin" "$@"
