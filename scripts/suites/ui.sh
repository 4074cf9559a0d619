# shellcheck shell=bash
# The dashboard in Chromium: a real proxy with real llama.cpp servers, and scripted fleets of up to 200 backends.
# `scripts/test.sh ui --screenshots` makes the pictures in docs/images again instead.
need npm npm
need chromium chromium
install demo,test
if [[ "${1-}" == --screenshots ]]; then
  PYTHONPATH=tests exec .venv/bin/python tests/ui/screenshots.py docs/images
fi
if [[ ! -e .venv-ui/installed ]]; then
  npm install --prefix .venv-ui --no-audit --no-fund axe-core@4
  touch .venv-ui/installed
fi
exec .venv/bin/python -m pytest tests/ui "$@"
