# shellcheck shell=bash
# The tests of the code in benchmarks/: load generator, simulation, reports.
install demo,test
exec .venv/bin/python -m pytest tests/benchmarks tests/balance "$@"
