# shellcheck shell=bash
# A real dnsmasq as the source of backends: its records change, and it dies, while real llama.cpp servers answer; and the CPU time
# that 256 backends cost. With -s, the figures are printed. Engines that come and go by admin API, announcement and file at once, for
# CHURN_SECONDS (60) each with one and with two workers; and multicast DNS on the loopback interface.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need dnsmasq dnsmasq-base
install demo,test
exec .venv/bin/python -m pytest tests/discovery "$@"
