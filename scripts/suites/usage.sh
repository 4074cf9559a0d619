# shellcheck shell=bash
# The usage ledger against the counters of real llama.cpp servers, over 2,000 requests of all kinds. A minute.
install demo,test
USAGE_REQUESTS="${1:-2000}" exec .venv/bin/python -m pytest tests/end_to_end/test_usage_sums.py
