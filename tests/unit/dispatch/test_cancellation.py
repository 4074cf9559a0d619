"""A client may disconnect at any moment, and nothing may be left then, whatever its request was waiting for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits
from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.client_side import ClientReceiver
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.request_head import parse_request_head
from support.fakes.engine import EngineConnection, FakeEngine, Script, http_reply
from support.fakes.front import LIMITS, until
from support.fakes.memory import turns
from support.pools import READY, Pool, make_forwarder, make_pool, publish, requests_under_budget
from support.ports import unused_url

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n"
QUEUE = QueueLimits(requests=30, seconds=30)


async def answers(connection: EngineConnection) -> None:
    while True:
        await connection.request()
        connection.send(http_reply())


async def streams(connection: EngineConnection) -> None:
    while True:
        await connection.request()
        connection.send(STREAM)
        for _ in range(10):
            await turns(1)
            connection.send(b"5\r\ndata:\r\n")
        connection.send(b"0\r\n\r\n")


async def declines(connection: EngineConnection) -> None:
    while True:
        await connection.request()
        connection.send(http_reply(b"no", 503))


async def dies(connection: EngineConnection) -> None:
    await connection.request()
    connection.reset()


async def answers_once(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(http_reply())
    await connection.first_bytes()
    connection.finish()


async def thinks(connection: EngineConnection) -> None:
    while True:
        await connection.request()
        await turns(12)
        connection.send(http_reply())


class Client:
    """Accepts everything."""

    is_behind = False

    def __init__(self) -> None:
        self.clock = lambda: 0.0

    def write(self, block: bytes) -> None:
        del block

    def comment_sent(self) -> None:
        """Nothing is timed."""

    def exchange_done(self, exchange: Exchange) -> None:
        del exchange

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        raise AssertionError


class Proxy:
    """A forwarder with its requests in flight."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.forwarder = make_forwarder(pool)
        self.requests: list[tuple[ProxiedRequest, asyncio.Task[None]]] = []

    def ask(self, *, path: str = "/v1/completions", wants_updates: bool = False) -> int:
        """Send a request; returns its number."""
        fields = b"X-Queue-Updates: true\r\n" if wants_updates else b""
        head = parse_request_head(b"POST %b HTTP/1.1\r\nHost: x\r\n%b" % (path.encode(), fields), LIMITS.head)
        head.destination = Destination.WORK
        body = b'{"model": "m", "stream": true}'
        exchange = ProxiedRequest(Client(), head, body, "id", "192.0.2.1:1")
        self.requests.append((exchange, asyncio.get_running_loop().create_task(self.forwarder.forward(exchange))))
        return len(self.requests) - 1

    def leave(self, which: int) -> bool:
        """Disconnect the client of a request, as its connection does; ``False`` if it already has its reply."""
        exchange, task = self.requests[which]
        if task.done() or exchange.done:
            return False
        exchange.client_left()
        task.cancel()
        return True

    async def finish(self) -> None:
        """Wait for all requests; each must be answered, end with an error of the proxy, or be cancelled."""
        tasks = [task for _, task in self.requests]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for (exchange, _), outcome in zip(self.requests, outcomes, strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                continue
            assert outcome is None or isinstance(outcome, ProxyError), outcome
            assert exchange.done or outcome is not None

    def check_base(self) -> None:
        """Check that nothing is left of any request."""
        line = self.pool.queue
        assert line.count == 0
        assert not line._lanes  # noqa: SLF001 - what no request may leave behind, as all below
        assert not line._deadlines._watched - self._connections()  # noqa: SLF001
        assert requests_under_budget(self.forwarder) == 0
        for backend in self.pool.backends:
            assert (backend.load.leases, backend.load.total) == (0, 0)
            assert not backend.connections._in_use  # noqa: SLF001
            trial = backend._trial  # noqa: SLF001
            assert trial is None or not trial.is_open

    def _connections(self) -> set[object]:
        return {idle for backend in self.pool.backends for idle in backend.connections._idle}  # noqa: SLF001


@asynccontextmanager
async def proxy_to(*scripts: Script | None, capacity: int | None = None) -> AsyncIterator[Proxy]:
    """A proxy with an engine for each script; ``None`` for an absent engine."""
    async with AsyncExitStack() as stack:
        urls: list[str] = []
        for script in scripts:
            if script is None:
                urls.append(unused_url())
            else:
                urls.append((await stack.enter_async_context(FakeEngine(script))).url)
        pool = make_pool(urls, Deadlines(), queue=QUEUE)
        publish(pool, replace(READY, capacity=capacity))
        try:
            yield Proxy(pool)
        finally:
            for backend in pool.backends:
                backend.connections.close()
            await turns(3)


WAYS: dict[str, tuple[tuple[Script | None, ...], int | None]] = {
    "answered": ((answers,), None),
    "streamed": ((streams,), None),
    "answered late": ((thinks,), None),
    "refused, then answered": ((None, None, answers), None),
    "declined, then answered": ((declines, answers), None),
    "declined by all": ((declines, declines), None),
    "declined, then refused": ((declines, None, None), None),
    "broken, then answered": ((dies, answers), None),
    "on a stale connection": ((answers_once,), None),
    "queued": ((thinks,), 1),
}


@pytest.mark.parametrize("twice", [False, True], ids=["cancelled once", "cancelled twice"])
@pytest.mark.parametrize("wants_updates", [False, True], ids=["", "queue updates"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(
    way: str, wants_updates: bool, twice: bool
) -> None:
    scripts, capacity = WAYS[way]
    async with proxy_to(*scripts, capacity=capacity) as proxy:
        if way == "on a stale connection":
            proxy.ask()
            await proxy.finish()
        left = 0
        for moment in range(200):
            publish(proxy.pool, replace(READY, capacity=capacity))
            others = [proxy.ask() for _ in range(2 if way == "queued" else 0)]
            await turns(len(others))
            which = proxy.ask(wants_updates=wants_updates)
            await turns(moment)
            has_left = proxy.leave(which)
            await turns(1)
            if twice and has_left:
                proxy.leave(which)
                proxy.requests[which][1].cancel()
            await proxy.finish()
            if has_left:
                left += 1
                assert proxy.requests[which][1].cancelled()
            proxy.check_base()
            if not has_left and moment > 5:
                break
        else:
            raise AssertionError("it is never answered")
        assert left > 1


_clients = st.tuples(
    st.integers(0, 6),  # loop iterations until it sends its request
    st.none() | st.integers(0, 60),  # and until it disconnects; None: it waits for its reply
    st.sampled_from(["/v1/completions", "/v1/responses"]),
    st.booleans(),
)
_scripts: st.SearchStrategy[Script | None] = st.sampled_from(
    [answers, streams, declines, dies, answers_once, thinks, None]
)


@settings(max_examples=40)
@given(
    st.lists(_scripts, min_size=1, max_size=4),
    st.none() | st.integers(1, 3),
    st.lists(_clients, min_size=1, max_size=40),
    st.integers(0, 1000),
)
def test_many_clients_that_leave_at_any_moment_leave_nothing_behind(
    scripts: list[Script | None],
    capacity: int | None,
    clients: list[tuple[int, int | None, str, bool]],
    seed: int,
) -> None:
    async def scenario() -> None:
        draw = random.Random(seed)
        async with proxy_to(*scripts, capacity=capacity) as proxy:

            async def be_client(until_asks: int, until_leaves: int | None, path: str, wants_updates: bool) -> None:
                await turns(until_asks)
                which = proxy.ask(path=path, wants_updates=wants_updates)
                if until_leaves is not None:
                    await turns(until_leaves)
                    if proxy.leave(which) and draw.random() < 0.3:
                        await turns(1)
                        proxy.requests[which][1].cancel()

            async def be_refresher() -> None:
                while True:
                    await turns(draw.randrange(20))
                    backend = draw.choice(proxy.pool.backends)
                    _evidence(draw)(proxy.pool)
                    state = replace(READY, capacity=capacity)
                    proxy.pool.publish(backend, state, own_at_poll=backend.load.leases, asked_at=proxy.pool.clock())

            async with asyncio.TaskGroup() as tasks:
                refresher = tasks.create_task(be_refresher())
                for client in clients:
                    await tasks.create_task(be_client(*client)) if draw.random() < 0.2 else tasks.create_task(
                        be_client(*client)
                    )
                await until(lambda: len(proxy.requests) == len(clients))
                await proxy.finish()
                refresher.cancel()
            await until(lambda: proxy.pool.queue.count == 0)
            proxy.check_base()

    asyncio.run(scenario())


def _evidence(draw: random.Random) -> Callable[[Pool], None]:
    """Something that happens to a backend occasionally."""

    def nothing(pool: Pool) -> None:
        del pool

    def timeout(pool: Pool) -> None:
        pool.report_timeout(draw.choice(pool.backends))

    def gone(pool: Pool) -> None:
        state = replace(READY, ready=False, live=False, reason="gone")
        pool.publish(draw.choice(pool.backends), state, own_at_poll=0, asked_at=pool.clock())

    def pause(pool: Pool) -> None:
        pool.report_request_to_wait(draw.choice(pool.backends), 0.01)

    return draw.choice([nothing, nothing, nothing, timeout, gone, pause])
