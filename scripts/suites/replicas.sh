# shellcheck shell=bash
# Four replicas of the proxy behind NGINX, with four real llama.cpp servers: replicas and engines are killed, stopped,
# frozen and replaced under load. Two machines (network namespaces) share an address with keepalived.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need nginx nginx
need keepalived keepalived
need ip iproute2
need curl curl
install demo,test
exec .venv/bin/python -m pytest tests/replicas "$@"
