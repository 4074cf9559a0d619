# shellcheck shell=bash
# The fault cases that take long: waits of real length, thousands of repetitions. Some minutes, on loopback.
install demo,test
exec .venv/bin/python -m pytest -m slow_faults tests/faults "$@"
