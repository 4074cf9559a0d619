# shellcheck shell=bash
# The pages for people who come from other proxies: NGINX, LiteLLM, vllm-router and smg run with the configurations shown, and this proxy with
# its own, in front of the same real llama.cpp servers. Installs LiteLLM, vllm-router and smg (0.6 GB), each into an environment of its own.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need nginx nginx
need curl curl
source benchmarks/peers.sh
for peer in litellm smg vllm-router; do
  install_peer "$peer" || fail "cannot install $peer, which benchmarks/requirements/$peer.txt pins"
done
install demo,test
exec .venv/bin/python -m pytest tests/moving "$@"
