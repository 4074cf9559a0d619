# shellcheck shell=bash
# NGINX and Caddy with the configurations of docs/behind-a-proxy.md, in front of the proxy.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need nginx nginx
need caddy caddy
install demo,test
exec .venv/bin/python -m pytest tests/behind_a_proxy "$@"
