"""Records of a real dnsmasq change while real llama.cpp servers answer, and no request fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from discovery.dnsmasq import Dnsmasq
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.ports import free_port
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
NAME = "engines.test"


@dataclass
class Load:
    """Requests and streams without a break.

    Attributes:
        statuses: of requests. backends: that answered them.
        whole, broken: streams.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    whole: int = 0
    broken: list[bytes] = field(default_factory=list)

    async def send_requests(self, url: str) -> None:
        while True:
            reply = await send(url, PATH, chat(4))
            self.statuses[reply.status] += 1
            self.backends[reply.headers.get("x-backend", "")] += 1
            await asyncio.sleep(0.05)

    async def read_streams(self, url: str) -> None:
        while True:
            async with Call(url, PATH, chat(100, stream=True)) as stream:
                stream.send()
                self.statuses[await stream.head()] += 1
                last = b""
                while event := await stream.event():
                    last = event
            if last == DONE:
                self.whole += 1
            else:
                self.broken.append(last)


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    running = Load()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(running.send_requests(url)) for _ in range(3)]
        clients += [group.create_task(running.read_streams(url)) for _ in range(3)]
        yield running
        for client in clients:
            client.cancel()


@pytest.fixture
def three_servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    """On one port of three addresses."""
    with ExitStack() as stack:
        port = free_port()
        options = ("--slots", "4", "--context", "8192", "--http-threads", "64")
        yield [
            stack.enter_context(LlamaServer(tiny_model, *options, host=f"127.0.0.{number}", port=port))
            for number in (1, 2, 3)
        ]


async def has(proxy: Proxy, *servers: LlamaServer) -> bool:
    return await proxy.available() == {server.url for server in servers} == set(await proxy.details())


async def are_found(proxy: Proxy, count: int) -> bool:
    """Whether all workers together have found so many backends."""
    return await proxy.metric("source_backends") == count


async def fails(proxy: Proxy) -> float:
    return await proxy.metric("source_failing")


async def works(proxy: Proxy) -> bool:
    return not await fails(proxy)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_no_request_fails_while_records_change_and_dnsmasq_dies(
    three_servers: list[LlamaServer], tmp_path: Path, workers: str
) -> None:
    one, two, three = three_servers
    with Dnsmasq(tmp_path, {NAME: [one.host, two.host]}) as dnsmasq:
        lookup = f"dns+http://{NAME}:{one.port}?server={dnsmasq.address}"
        with Proxy(tmp_path / "proxy", [lookup], WORKERS=workers) as proxy:
            async with load(proxy.url) as running:
                for servers in ([two, three], [three], [one, three], [one], [one, two, three]):
                    dnsmasq.set({NAME: [server.host for server in servers]})
                    await eventually(partial(has, proxy, *servers))
                await eventually(partial(are_found, proxy, 3 * int(workers)))
                dnsmasq.set({})  # the name does not exist any more
                await eventually(lambda: fails(proxy))
                dnsmasq.kill()
                await eventually(lambda: "the name server" in proxy.events)
                assert await has(proxy, one, two, three)
                answered = running.statuses[200]
                await eventually(lambda: running.statuses[200] > answered + 50)

                dnsmasq.set({NAME: [two.host]})
                dnsmasq.start()
                await eventually(partial(has, proxy, two), 60)
                await eventually(lambda: works(proxy), 60)  # in all workers
    assert set(running.statuses) == {200}
    assert (running.broken, running.whole > 10) == ([], True)
    assert set(running.backends) == {server.url for server in three_servers}


async def test_services_with_addresses_of_both_families(tiny_model: Path, tmp_path: Path) -> None:
    with LlamaServer(tiny_model) as four, LlamaServer(tiny_model, host="::1") as six:
        options = [f"--srv-host=_llm._tcp.test,{name}.test,{one.port}" for name, one in (("four", four), ("six", six))]
        with Dnsmasq(tmp_path, {"four.test": ["127.0.0.1"], "six.test": ["::1"]}, *options) as dnsmasq:
            lookup = f"srv+http://_llm._tcp.test?server={dnsmasq.address}"
            with Proxy(tmp_path / "proxy", [lookup]) as proxy:
                await eventually(
                    lambda: is_served_by(proxy, f"http://127.0.0.1:{four.port}", f"http://[::1]:{six.port}")
                )
                backends = {(await send(proxy.url, PATH, chat(2))).headers["x-backend"] for _ in range(20)}
                assert len(backends) == 2


async def is_served_by(proxy: Proxy, *urls: str) -> bool:
    return await proxy.available() == set(urls)
