"""A proxy on a machine with few free ports, in a network namespace of its own.

``unshare --map-root-user --net python few_ports.py``; prints the results of its requests as one JSON object.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from faults.conftest import CHAT
from support.engine import Engine
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Reply, chat, send
from support.live_proxy import live_proxy
from support.waiting import eventually

_PORTS = 40
_TAKEN = 28  # ports taken by connections to the engine
_REQUESTS = 30
_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x41  # SIOCSIFFLAGS, linux/sockios.h; IFF_UP and IFF_RUNNING, linux/if.h


def _make_ports_few() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP_AND_RUNNING))
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"50000 {50000 + _PORTS - 1}")


async def _run() -> dict[str, object]:
    may_end = asyncio.Event()

    async def answer(connection: EngineConnection) -> None:
        await may_end.wait()
        connection.send(http_reply())

    refusals: list[float] = []

    async def ask(url: str) -> Reply:
        began = time.monotonic()
        reply = await send(url, CHAT, chat())
        if reply.status != 200:
            refusals.append(time.monotonic() - began)
        return reply

    settings: dict[str, Any] = {"refresh_seconds": 0.3, "max_allowed_request_queue": 1000, "access_log": False}
    async with Engine(answer) as engine, live_proxy(engine.url, **settings) as proxy:
        others = [await asyncio.open_connection("127.0.0.1", engine.port) for _ in range(_TAKEN)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(proxy.url)) for _ in range(_REQUESTS)]
            await eventually(lambda: len(refusals) + len(engine.served) == _REQUESTS)
            await asyncio.sleep(1.5)  # several polls fail in this time
            state = await proxy.state(engine)
            may_end.set()
        replies = [task.result() for task in tasks]
        for _, writer in others:  # with a reset, because an orderly close keeps the port for a minute
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
        served = [reply for reply in replies if reply.status == 200]
        codes = Counter(reply.json["error"]["code"] for reply in replies if reply.status != 200)

        async def is_served() -> bool:
            await asyncio.sleep(0.5)
            try:
                return (await ask(proxy.url)).status == 200
            except OSError:
                return False  # no port for this client

        slowest = max(refusals, default=0.0)
        await eventually(is_served)
    return {"served": len(served), "codes": codes, "slowest refusal": slowest, "state": state}


if __name__ == "__main__":
    _make_ports_few()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run())))  # noqa: T201 - the test reads it
