# shellcheck shell=bash
# Fuzzes both parsers and both kinds of connection for some minutes (10) on one core. An input that breaks a rule of
# tests/fuzz/targets.py is kept in tests/fuzz/regressions, where the ordinary tests read it. Argument: minutes. The corpus grows
# in .venv-fuzz/corpus.
readonly minutes="${1:-10}" fuzzer='atheris>=3,<4'
[[ "$minutes" =~ ^[1-9][0-9]*$ ]] || fail "expected a number of minutes, not '$minutes'"

wanted="$fuzzer $(cksum < pyproject.toml) $PWD"
if [[ "$(cat .venv-fuzz/installed 2>/dev/null)" != "$wanted" ]]; then
  python="$(find_python)"
  [[ -e .venv-fuzz/bin/pip ]] || "$python" -m venv .venv-fuzz
  .venv-fuzz/bin/pip install --disable-pip-version-check --editable . h11 "$fuzzer" \
    || fail "cannot install $fuzzer for $("$python" --version): it supports Linux and CPython 3.11 to 3.13"
  echo "$wanted" > .venv-fuzz/installed
fi

export PYTHONPATH=$PWD/tests
exec nice -n 19 .venv-fuzz/bin/python -m fuzz .venv-fuzz/corpus -max_total_time="$((minutes * 60))" -max_len=2048 -timeout=20 \
  -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix=tests/fuzz/regressions/
