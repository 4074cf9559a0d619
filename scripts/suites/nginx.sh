# shellcheck shell=bash
# NGINX with the configuration in nginx/, in front of the proxy and two real llama.cpp servers.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need nginx nginx
need openssl openssl
install demo,test
exec .venv/bin/python -m pytest tests/nginx "$@"
