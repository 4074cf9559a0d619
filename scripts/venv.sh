# shellcheck shell=bash
# Sourced by the other scripts, in the checkout's root: creates .venv and installs the project into it.

fail() { echo "${0##*/}: $*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found on the PATH"
}

need() { # $1: a program, $2: its package in Debian
  command -v "$1" >/dev/null || fail "needs $1: try 'apt install $2'"
}

static_checks() { # the tools must be on the PATH
  (
    set -x
    ruff format --check .
    ruff check .
    mypy
    lint-imports
  )
}

free_port() { # of 127.0.0.1
  "$(find_python)" -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}

# Installs once per version of pyproject.toml and location of the checkout. The stamp is written last, so a failed
# installation is repeated.
install() { # $1: extras, separated by commas; may be empty
  local stamp=".venv/installed-$1" wanted python
  wanted="$(cksum < pyproject.toml) $PWD"
  if [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null; then return; fi
  python="$(find_python)"
  "$python" -c 'import ensurepip' 2>/dev/null || fail "$python lacks ensurepip: try 'apt install python3-venv'"
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --disable-pip-version-check --editable ".${1:+[$1]}"
  echo "$wanted" > "$stamp"
}
