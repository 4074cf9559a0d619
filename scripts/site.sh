#!/usr/bin/env bash
# Builds the site of the documentation into build/site, in an environment of its own, .venv-site.
#
# scripts/site.sh               builds it; a warning, such as a broken link, is an error
# scripts/site.sh serve [PORT]  shows it at http://127.0.0.1:8000/ or PORT, and builds it again after each change
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

wanted="$(cksum < pyproject.toml)"
if [[ "$(cat .venv-site/installed 2>/dev/null)" != "$wanted" ]]; then
  "$(find_python)" -m venv --clear .venv-site
  # The packages of the extra alone: the site needs nothing of the proxy.
  mapfile -t packages < <(.venv-site/bin/python - <<'PYTHON'
import tomllib
from pathlib import Path
print(*tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"], sep="\n")
PYTHON
  )
  .venv-site/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
  echo "$wanted" > .venv-site/installed
fi
export NO_MKDOCS_2_WARNING=1 # Material prints an advertisement otherwise
if [[ "${1-}" == serve ]]; then
  exec .venv-site/bin/mkdocs serve --dev-addr "127.0.0.1:${2-8000}"
fi
exec .venv-site/bin/mkdocs build --strict "$@"
