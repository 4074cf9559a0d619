# shellcheck shell=bash
# Runs the proxy for some minutes in front of real llama.cpp servers and scripted engines that are killed, frozen and made to fail
# at random, with every kind of client at once; then checks that no requests, files, memory or errors are left.
# Arguments: MINUTES [--seed N]      --seed: repeat another run, as far as timing allows
[[ "${1-}" =~ ^[1-9][0-9]*$ ]] || fail "takes a number of minutes, not '${1-}'"
install demo,test
PYTHONPATH=$PWD/tests exec .venv/bin/python -m soak "$@"
