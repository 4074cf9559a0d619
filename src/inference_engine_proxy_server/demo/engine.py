"""One llama.cpp server on a free port of 127.0.0.1: ``python engine.py MODEL NAME THREADS``.

Its only line on standard output is its base URL, written when it is ready. It lives until its standard input ends,
which the system sees to even if the parent is killed. (While it loads it notices only afterwards: the engine holds
Python's lock meanwhile.) Run by its path, so it imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import os
import sys

import xllamacpp


def parameters(model: str, name: str, threads: int) -> xllamacpp.CommonParams:
    chosen = xllamacpp.CommonParams()
    chosen.model.path = model
    chosen.model_alias = {name}
    chosen.hostnames = ["127.0.0.1"]
    chosen.port = 0  # the system picks a free one
    chosen.n_parallel = 2
    chosen.n_ctx = 4096  # tokens of all slots together
    chosen.cpuparams.n_threads = threads
    chosen.cpuparams_batch.n_threads = threads
    # Each idle keep-alive connection holds one HTTP thread for 5 s, and the engine's own default is only a few.
    chosen.n_threads_http = 64
    chosen.endpoint_metrics = True
    chosen.endpoint_slots = True
    chosen.verbosity = 1  # errors only
    # The model was trained to continue text, not to chat: a question's shape would only be repeated to the end.
    chosen.chat_template = "{{ messages | map(attribute='content') | join('\n\n') }}"
    chosen.sampling.temp = 0.7
    chosen.sampling.penalty_repeat = 1.1  # so small a model falls into loops without it
    return chosen


def main() -> None:
    model, name, threads = sys.argv[1:]
    ready_pipe = os.dup(1)
    os.dup2(2, 1)  # whatever the engine prints is log, not our one line
    try:
        server = xllamacpp.Server(parameters(model, name, int(threads)))
    except RuntimeError as error:
        sys.exit(str(error))
    with contextlib.suppress(BrokenPipeError):  # the parent has gone meanwhile: the next line sees that too
        os.write(ready_pipe, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)  # at once: the engine's own way out waits 30 s for the streams that still run


if __name__ == "__main__":
    main()
