# shellcheck shell=bash
# A thousand slow clients at a time, with slow headers, slow bodies and slow reading, while another client measures its latency:
# its p99 must stay below twice the p99 of a proxy without slow clients. Below two minutes, on loopback.
need slowhttptest slowhttptest
install demo,test
exec .venv/bin/python -m pytest tests/slow_clients "$@"
