# shellcheck shell=bash
# Sourced in the checkout's root, after scripts/venv.sh: installs the peers that are Python packages, each in a folder of its own.

# Once per version; the stamp is written last, so a broken installation is tried again.
install_peer() { # $1: folder; $2: requirement
  [[ "$(cat "$1/installed" 2>/dev/null)" == "$2" ]] && return
  "$(find_python)" -m venv --clear "$1" &&
    "$1/bin/pip" install --disable-pip-version-check "$2" >&2 &&
    echo "$2" > "$1/installed"
}
