# shellcheck shell=bash
# The commands of docs/start.md on a copy of the project with its own environment, and those of other pages that
# newcomers read, with real llama.cpp servers.
need curl curl
install demo,test
exec .venv/bin/python -m pytest tests/docs_commands "$@"
