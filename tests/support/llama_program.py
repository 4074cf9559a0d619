"""The llama.cpp server that ``LlamaServer`` runs.

``python llama_program.py MODEL PORT [--slots N] [--no-metrics] ...`` prints its address once it is ready, and ends when
its standard input does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import xllamacpp  # 100 MB, which the test processes do not load


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096, help="tokens of all slots together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="the only core that it uses; default: all")
    parser.add_argument("--http-threads", type=int, default=-1, help="-1: the engine's own choice")
    parser.add_argument("--alias", help="the model's name in /v1/models")
    parser.add_argument("--api-key")
    parser.add_argument("--no-prefill", dest="prefill", action="store_false", help="--no-prefill-assistant")
    parser.add_argument("--precise", action="store_true", help="the batch hardly changes results")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings, and nothing else")
    parser.add_argument("--rerank", action="store_true", help="serve scores of documents, and nothing else")
    parser.add_argument("--chat-template", type=Path, help="a file, in place of the model's own template")
    parser.add_argument("--mmproj", help="a GGUF file that reads pictures")
    parser.add_argument("--no-metrics", dest="metrics", action="store_false")
    return parser.parse_args()


def _serve(arguments: argparse.Namespace) -> None:
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})  # now, because each new thread inherits it
    chosen = xllamacpp.CommonParams()
    chosen.model.path = arguments.model
    chosen.hostnames = [arguments.host]
    chosen.port = arguments.port
    chosen.n_parallel = arguments.slots
    chosen.n_ctx = arguments.context
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = arguments.threads
    chosen.n_threads_http = arguments.http_threads
    if arguments.precise:
        chosen.cache_type_k = chosen.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        chosen.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    chosen.endpoint_metrics = arguments.metrics
    chosen.endpoint_slots = True
    chosen.prefill_assistant = arguments.prefill
    if arguments.embeddings or arguments.rerank:
        pooling = xllamacpp.llama_pooling_type
        chosen.embedding = True
        chosen.pooling_type = pooling.LLAMA_POOLING_TYPE_RANK if arguments.rerank else pooling.LLAMA_POOLING_TYPE_MEAN
    if arguments.mmproj:
        chosen.mmproj.path = arguments.mmproj
    if arguments.alias:
        chosen.model_alias = {arguments.alias}
    if arguments.chat_template:
        chosen.chat_template = arguments.chat_template.read_text()
    if arguments.api_key:
        chosen.api_keys = [arguments.api_key]
    ready_pipe = os.dup(1)
    os.dup2(2, 1)  # all output of the engine is log
    server = xllamacpp.Server(chosen)
    with contextlib.suppress(BrokenPipeError):  # the tests have ended; the next line notices that too
        os.write(ready_pipe, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)  # at once, because the engine's orderly exit waits for its streams


if __name__ == "__main__":
    _serve(_arguments())
