# shellcheck shell=bash
# A real dnsmasq as the source of backends: its records change, and it dies, while real llama.cpp servers answer; and the CPU time
# that 256 backends cost. With -s, the figures are printed.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need dnsmasq dnsmasq-base
install demo,test
exec .venv/bin/python -m pytest tests/discovery "$@"
