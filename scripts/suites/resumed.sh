# shellcheck shell=bash
# Long proofs of resumed streams and assembled replies, with real llama.cpp servers: 60 streams while servers are killed, frozen and
# drained, each compared with what an engine says; the memory of a thousand streams; answers without streams that survive their server.
install demo,test
exec .venv/bin/python -m pytest tests/resumed "$@"
