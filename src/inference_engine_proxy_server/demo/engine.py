"""One llama.cpp server on a free port of 127.0.0.1: ``python engine.py MODEL NAME THREADS``.

It writes one line to standard output, its base URL, when it is ready. It runs until its standard input ends, which
happens even if the parent is killed. While it loads the model it notices that only afterwards, because the engine holds
Python's global lock. It is run by its path, so it imports nothing from this project.
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
    chosen.port = 0  # the operating system picks a free one
    chosen.n_parallel = 2
    chosen.n_ctx = 4096  # tokens of all slots together
    chosen.cpuparams.n_threads = threads
    chosen.cpuparams_batch.n_threads = threads
    # Each idle keep-alive connection occupies an HTTP thread for 5 s, and the engine's default is only a few threads.
    chosen.n_threads_http = 64
    chosen.endpoint_metrics = True
    chosen.endpoint_slots = True
    chosen.verbosity = 1  # errors only
    # The model continues text and is not trained to chat: it would only repeat a chat template.
    chosen.chat_template = "{{ messages | map(attribute='content') | join('\n\n') }}"
    chosen.sampling.temp = 0.7
    chosen.sampling.penalty_repeat = 1.1  # without it, such a small model repeats itself
    return chosen


def main() -> None:
    model, name, threads = sys.argv[1:]
    ready_pipe = os.dup(1)
    os.dup2(2, 1)  # the engine's own output goes to the log
    try:
        server = xllamacpp.Server(parameters(model, name, int(threads)))
    except RuntimeError as error:
        sys.exit(str(error))
    with contextlib.suppress(BrokenPipeError):  # the parent has ended; the next line notices it
        os.write(ready_pipe, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)  # at once: the engine's own shutdown waits 30 s for running streams


if __name__ == "__main__":
    main()
