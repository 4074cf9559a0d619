# shellcheck shell=bash
# Sourced in the checkout's root, after scripts/venv.sh: gets what the benchmarks need beside the project.

# A file of benchmarks/requirements in a virtual environment of its own: peers pin each other's libraries to other versions.
# Once per content of the file; the stamp is written last, so a broken installation is tried again.
install_peer() { # $1: the file's name, without its ending
  local folder=".venv-bench-$1" requirements="benchmarks/requirements/$1.txt"
  cmp --silent "$requirements" "$folder/installed" && return
  "$(find_python)" -m venv --clear "$folder" &&
    "$folder/bin/pip" install --disable-pip-version-check --requirement "$requirements" >&2 &&
    cp "$requirements" "$folder/installed"
}

# Those that cannot be installed here are left out of what is measured, not a reason to stop.
install_peers() { # $@: names as for install_peer
  local peer
  for peer in "$@"; do
    install_peer "$peer" || echo "${0##*/}: cannot install $peer: going on without it" >&2
  done
}

miss_programs() { # $@: programs that come from the system's packages
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || echo "${0##*/}: no $program on the PATH (try 'apt install $program'): going on without it" >&2
  done
}

compile_load() { # $1: folder for the programs
  local program
  command -v cc >/dev/null || fail "needs a C compiler: try 'apt install gcc libc6-dev'"
  for program in engine client; do
    cc -O2 -Wall -Wextra -o "$1/$program" "benchmarks/load/$program.c"
  done
}

# Compiles the load, and runs the suite; several thousand streams at a time need as many open files.
measure() { # $@: options of the suite
  local programs
  programs="$(mktemp -d)"
  # shellcheck disable=SC2064 # the folder's name is wanted now
  trap "rm -r '$programs'" EXIT
  compile_load "$programs"
  ulimit -n "$(ulimit -Hn)"
  BENCHMARK="${0##*/}" PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" .venv/bin/python -m suite --programs "$programs" "$@"
}
