# shellcheck shell=bash
# Every recipe of docs/clients.md, also those that need Node, a browser or LangChain: 200 MB of packages in .venv-clients.
need curl curl
need node nodejs
need npm npm
need chromium chromium
node --eval 'process.exitCode = parseInt(process.versions.node) < 20 ? 1 : 0' || fail "needs Node 20 or newer, and found $(node --version)"

install demo,test
if [[ ! -e .venv-clients/installed ]]; then
  "$(find_python)" -m venv --clear .venv-clients
  .venv-clients/bin/pip install --disable-pip-version-check 'langchain-openai>=1,<2'
  npm install --prefix .venv-clients --no-audit --no-fund openai@7 @anthropic-ai/sdk@1
  touch .venv-clients/installed
fi
exec .venv/bin/python -m pytest -m 'clients or not clients' tests/clients "$@"
