# shellcheck shell=bash
# A real Prometheus scrapes the proxy in front of real llama.cpp servers, with the rules and the dashboard in monitoring/.
need prometheus prometheus
need promtool prometheus
install demo,test
exec .venv/bin/python -m pytest tests/prometheus "$@"
