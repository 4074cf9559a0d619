"""Measures how evenly workers spread bursts over engines, and how evenly connections spread over the workers.

    python benchmarks/worker_balance.py [--workers 1,2,4] [--bursts 20]

A burst is 64 simultaneous streams, each on its own connection, to four equal engines, which end the streams
when all have begun. The request ids in the replies identify the worker of each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxies.proxy import free_port

_STREAMS, _ENGINES = 64, 4
_ASK = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_START_SECONDS = 30.0


class _Engine:
    """A fake vLLM server that is never full; holds completions back until ``may_go`` is set."""

    def __init__(self, may_go: asyncio.Event) -> None:
        self._may_go = may_go
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = b"{}"
                if head.startswith(b"POST"):
                    await reader.readexactly(2)
                    self.requests += 1
                    # Send the reply's head immediately, so that the client learns its worker.
                    writer.write(_HEAD + b"content-length: 2\r\n\r\n")
                    await self._may_go.wait()
                    writer.write(body)
                    continue
                if b" /v1/models " in head:
                    body = b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}'
                writer.write(_HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def _worker_of(reader: asyncio.StreamReader) -> bytes:
    """The prefix that all request ids of one worker share."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head.partition(b"x-request-id: ")[2].partition(b"-")[0]


async def _measure(workers: int, bursts: int) -> None:
    may_go = asyncio.Event()
    engines = [_Engine(may_go) for _ in range(_ENGINES)]
    servers = [await asyncio.start_server(engine.serve, "127.0.0.1", 0) for engine in engines]
    of_engines: list[list[int]] = []
    of_workers: list[list[int]] = []
    with _proxy(workers, [server.sockets[0].getsockname()[1] for server in servers]) as port:
        await _until_it_serves(port)
        for _ in range(bursts):
            before = [engine.requests for engine in engines]
            found = await _burst(port, may_go)
            of_engines.append([engine.requests - count for engine, count in zip(engines, before, strict=True)])
            of_workers.append([*found.values(), *[0] * (workers - len(found))])
    await asyncio.sleep(0.2)  # until the engines have noticed the end of the proxy
    for server in servers:
        server.close()
    print(f"| {workers} | {_range(of_engines)} | {_range(of_workers)} |")


async def _burst(port: int, may_go: asyncio.Event) -> Counter[bytes]:
    """Send one burst, and count its connections by worker."""
    may_go.clear()
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(_STREAMS)]
    for _, writer in connections:
        writer.write(_ASK)
    found = Counter([await _worker_of(reader) for reader, _ in connections])
    may_go.set()
    for reader, writer in connections:
        await reader.readexactly(2)
        writer.close()
    return found


def _range(bursts: list[list[int]]) -> str:
    widest = max(max(counts) - min(counts) for counts in bursts)
    return f"{min(map(min, bursts))} to {max(map(max, bursts))} (at most {widest} apart in one burst)"


@contextmanager
def _proxy(workers: int, engine_ports: list[int]) -> Iterator[int]:
    port = free_port()
    settings = {
        "WORKERS": str(workers),
        "PORT": str(port),
        "BACKENDS": ",".join(f"http://127.0.0.1:{engine_port}" for engine_port in engine_ports),
        "ACCESS_LOG": "false",
        "LOG_LEVEL": "error",
    }
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "PYTHON"))}
    command = [sys.executable, "-m", "inference_engine_proxy_server", "serve"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=Path(folder), env=kept | settings)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


async def _until_it_serves(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return await asyncio.sleep(2)  # until every worker has polled every engine


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--bursts", type=int, default=20)
    options = parser.parse_args()
    print(f"| workers | of {_STREAMS} requests on each of {_ENGINES} engines | connections on each worker |")
    print("|---|---|---|")
    for workers in map(int, options.workers.split(",")):
        asyncio.run(_measure(workers, options.bursts))


if __name__ == "__main__":
    _main()
