# shellcheck shell=bash
# State that replicas share, with a real redis-server (or valkey-server; REDIS_SERVER names another one), which is killed, stopped, slowed
# down and started again empty: limits and budgets of keys over four real replicas under load; and what replicas tell each
# other: drains, doubts about backends, backends that join, resources, conversations. With -s, the measured figures are printed.
if [[ -z "${REDIS_SERVER-}" ]] && ! command -v valkey-server >/dev/null; then need redis-server redis-server; fi
install test
exec .venv/bin/python -m pytest tests/shared_state "$@"
