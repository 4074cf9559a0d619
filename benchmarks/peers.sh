# shellcheck shell=bash
# Sourced in the checkout's root, after scripts/venv.sh: installs what the benchmarks need besides the project.

# Installs a file of benchmarks/requirements into its own virtual environment, because peers pin conflicting versions.
# Installs once per content of the file. The stamp is written last, so a failed installation is repeated.
install_peer() { # $1: the file's name, without its suffix
  local folder=".venv-bench-$1" requirements="benchmarks/requirements/$1.txt"
  cmp --silent "$requirements" "$folder/installed" && return
  "$(find_python)" -m venv --clear "$folder" &&
    "$folder/bin/pip" install --disable-pip-version-check --requirement "$requirements" >&2 &&
    cp "$requirements" "$folder/installed"
}

# A peer that cannot be installed is left out; the benchmark continues.
install_peers() { # $@: names as for install_peer
  local peer
  for peer in "$@"; do
    install_peer "$peer" || echo "${0##*/}: cannot install $peer: continuing without it" >&2
  done
}

miss_programs() { # $@: programs from the system's packages
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null || echo "${0##*/}: no $program on the PATH (try 'apt install $program'): continuing without it" >&2
  done
}

compile_load() { # $1: folder for the programs
  local program
  command -v cc >/dev/null || fail "needs a C compiler: try 'apt install gcc libc6-dev'"
  for program in engine client; do
    cc -O2 -Wall -Wextra -o "$1/$program" "benchmarks/load/$program.c"
  done
}

# Compiles the load generator, and runs the suite. Several thousand concurrent streams need as many open files.
measure() { # $@: options of the suite
  local programs
  programs="$(mktemp -d)"
  # shellcheck disable=SC2064 # expand the folder's name now
  trap "rm -r '$programs'" EXIT
  compile_load "$programs"
  ulimit -n "$(ulimit -Hn)"
  BENCHMARK="${0##*/}" PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" .venv/bin/python -m suite --programs "$programs" "$@"
}
