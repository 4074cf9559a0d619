# shellcheck shell=bash
# Upgrades of the running program, socket activation and the unit files in deploy/systemd: with a notify socket of the tests, with
# systemd-socket-activate, and with a real systemd that is the first process of namespaces of its own (tests/systemd/machine.sh).
# Five to ten minutes.
need systemd-analyze systemd
need systemd-socket-activate systemd
need nsenter util-linux
[[ "$(uname)" == Linux && "$EUID" == 0 ]] || fail "needs root on Linux: systemd runs in namespaces of its own"
grep -q ' - cgroup2 ' /proc/self/mountinfo || fail "needs a cgroup2 file system: try 'mount -t cgroup2 none /sys/fs/cgroup/unified'"
install demo,test
exec .venv/bin/python -m pytest tests/systemd "$@"
