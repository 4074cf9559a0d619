"""Clients that disconnect, are slow, send too much or too little, or retry in a storm."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.conftest import CHAT
from inference_engine_proxy_server.telemetry.routes import route_of
from support.engine import EVENT, STREAM_HEAD, Engine, answers_with, chunk, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.fakes.front import Client, until
from support.fleet import Fleet
from support.http_client import Call, chat, send
from support.live_proxy import Proxy as LiveProxy
from support.program import FreshProxy, Proxy
from support.running_proxy import RunningProxy
from support.waiting import eventually

Leave = Callable[[Call], Awaitable[None]]

SOON_SECONDS = 10.0
DISCONNECTS = pytest.mark.parametrize("leave", [Call.leave, Call.reset], ids=["FIN", "RST"])
STREAMING = answers_with(STREAM_HEAD, chunk(EVENT))
POST = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\n".encode()
MEBIBYTE = 1 << 20
MOST_HELD_BYTES = 65_536 + 256_000 + 40_000  # for a client that reads nothing; the last term is for its objects


class Gate:
    """An engine's answer that waits until the gate is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, connection: EngineConnection) -> None:
        await self.opened.wait()
        connection.send(http_reply())


async def connected(url: str, receive_buffer_bytes: int = 0) -> socket.socket:
    """A connection to ``url``; a small buffer bounds the bytes that the kernel accepts unread."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    host, _, port = url.removeprefix("http://").rpartition(":")
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    return client


async def connect(proxy: LiveProxy, receive_buffer_bytes: int = 0) -> Client:
    """A client that sends raw bytes, on a connection from :func:`connected`."""
    client = await connected(proxy.url, receive_buffer_bytes)
    reader, writer = await asyncio.open_connection(sock=client, limit=receive_buffer_bytes or 65536)
    proxy.clients.callback(writer.close)
    return Client(reader, writer)


async def waiting(proxy: RunningProxy, count: int) -> bool:
    return await proxy.metric("queue_requests") == count


# --- disconnects


@DISCONNECTS
async def test_cf01_request_whose_client_leaves_the_queue_is_never_sent(fleet: Fleet, leave: Leave) -> None:
    gate = Gate()
    engine = await fleet.engine(gate)
    engine.slots = 1
    proxy = await fleet.proxy(engine, backend_queue_allowance=0)
    async with proxy.call() as first, Call(proxy.url, CHAT, chat(user="leaver")) as leaver, proxy.call() as stayer:
        first.send()
        await eventually(lambda: len(engine.served) == 1)
        leaver.send()
        await eventually(lambda: waiting(proxy, 1))
        stayer.send()
        await eventually(lambda: waiting(proxy, 2))

        await leave(leaver)

        await eventually(lambda: waiting(proxy, 1))
        assert await proxy.metric("requests_total", code="499") == 1
        gate.opened.set()
        assert [await call.head() for call in (first, stayer)] == [200, 200]
    assert len(engine.served) == 2
    assert not any(b"leaver" in request for request in engine.served)


async def lets_go(
    proxy: RunningProxy, engine: Engine, leave: Callable[[], Awaitable[None]], code: str, path: str = CHAT
) -> None:
    """Check that a disconnect frees the engine at once and is counted exactly once."""
    await leave()
    await until(lambda: not engine.open_requests)
    await eventually(proxy.is_at_rest)
    assert await proxy.metric("requests_total", code=code, route=route_of(path)) == 1
    assert await proxy.metric("stream_aborts_total", side="client") == (code == "200")
    assert await proxy.metric("stream_aborts_total", side="backend") == 0
    assert await proxy.metric("retries_total") == 0
    assert len(engine.served) == 1
    assert await proxy.state(engine) == "up"
    assert await proxy.metric("backend_requests_in_flight") == 0


@DISCONNECTS
async def test_cf03_disconnect_before_the_first_byte_ends_the_stream_at_the_engine(fleet: Fleet, leave: Leave) -> None:
    engine = await fleet.engine(hangs)
    proxy = await fleet.proxy(engine)
    async with proxy.call(stream=True) as call:
        call.send()
        await eventually(lambda: len(engine.served) == 1)
        await lets_go(proxy, engine, lambda: leave(call), "499")


@DISCONNECTS
async def test_cf04_disconnect_before_the_reply_ends_the_request_at_the_engine(fleet: Fleet, leave: Leave) -> None:
    engine = await fleet.engine(hangs)
    proxy = await fleet.proxy(engine)
    async with proxy.call(stream=False) as call:
        call.send()
        await eventually(lambda: len(engine.served) == 1)
        await lets_go(proxy, engine, lambda: leave(call), "499")


@DISCONNECTS
async def test_cf05_disconnect_during_a_stream_ends_it_at_the_engine_and_counts_once(
    fleet: Fleet, leave: Leave
) -> None:
    engine = await fleet.engine(STREAMING)
    proxy = await fleet.proxy(engine)
    async with proxy.call(stream=True) as call:
        call.send()
        assert (await call.head(), await call.event()) == (200, EVENT)
        await lets_go(proxy, engine, lambda: leave(call), "200")


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
)
MESSAGES = [{"role": "user", "content": "kin"}]
BODIES: dict[str, object] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "kin"},
    "/v1/responses": {"input": "kin"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/embeddings": {"input": "kin"},
    "/v1/rerank": {"query": "kin", "documents": ["a"]},
    "/v1/audio/transcriptions": FORM,
}


@pytest.mark.parametrize("begun", [False, True], ids=["before its reply", "during its reply"])
@pytest.mark.parametrize("path", BODIES)
async def test_cf06_disconnect_is_noticed_on_every_path(fleet: Fleet, path: str, *, begun: bool) -> None:
    engine = await fleet.engine(STREAMING if begun else hangs)
    proxy = await fleet.proxy(engine)
    headers = {"Content-Type": "multipart/form-data; boundary=x"} if path.startswith("/v1/audio") else {}
    async with Call(proxy.url, path, BODIES[path], headers=headers) as call:
        call.send()
        await eventually(lambda: len(engine.served) == 1)
        if begun:
            await call.head()
        await lets_go(proxy, engine, call.leave, "200" if begun else "499", path)


@pytest.mark.parametrize("begun", [False, True], ids=["before its reply", "during its reply"])
async def test_cf08_client_that_closes_its_sending_half_counts_as_disconnected(fleet: Fleet, *, begun: bool) -> None:
    engine = await fleet.engine(STREAMING if begun else hangs)
    proxy = await fleet.proxy(engine)
    async with proxy.call() as call:
        call.send()
        await eventually(lambda: len(engine.served) == 1)
        if begun:
            assert (await call.head(), await call.event()) == (200, EVENT)
        await lets_go(proxy, engine, call.half_close, "200" if begun else "499")
        if begun:
            assert not (await call.reply()).complete
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await call.head()


# --- slow clients


class Torrent:
    """An engine's answer of 200 MiB, generated as fast as it is read.

    Attributes:
        sent_bytes: bytes accepted by the proxy or by the kernel.
    """

    SIZE = 200 * MEBIBYTE

    def __init__(self) -> None:
        self.sent_bytes = 0

    async def __call__(self, connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD.replace(b"transfer-encoding: chunked", b"content-length: %d" % self.SIZE))
        made = 0
        block = b"x" * 65536
        while made < self.SIZE and not connection.ended.done():
            if connection.unsent_bytes < MEBIBYTE:
                connection.send(block)
                made += len(block)
            self.sent_bytes = made - connection.unsent_bytes
            await asyncio.sleep(0)

    async def stands_still(self) -> None:
        """Wait until no more bytes are accepted."""
        seen = -1
        while self.sent_bytes != seen:
            seen = self.sent_bytes
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("reads", [True, False], ids=["CF10, byte by byte", "CF11, nothing"])
async def test_cf10_cf11_slow_reader_pauses_its_engine_and_is_cut_off_in_time(fleet: Fleet, *, reads: bool) -> None:
    torrent = Torrent()
    engine = await fleet.engine(torrent)
    proxy = await fleet.proxy(engine, client_write_stall_seconds=1.2)
    client = await connect(proxy, receive_buffer_bytes=4096)
    client.send(POST + b"Content-Length: 2\r\n\r\n{}")
    began = time.monotonic()

    async def slow() -> None:
        if not reads:
            client.stop_reading()
            return
        while True:
            await client.read(1)
            await asyncio.sleep(0.02)

    slow_task = asyncio.get_running_loop().create_task(slow())
    await torrent.stands_still()
    assert engine.open_requests == 1
    assert 0 < torrent.sent_bytes < Torrent.SIZE / 4  # no more than the kernel buffers
    assert (await send(proxy.url, "/livez")).status == 200

    await until(lambda: not engine.open_requests)

    slow_task.cancel()
    assert time.monotonic() - began >= 1.2
    await eventually(proxy.is_at_rest)
    assert await proxy.metric("stream_aborts_total", side="client") == 1
    assert await proxy.state(engine) == "up"


@pytest.mark.slow_faults
async def test_cf10_each_of_500_slow_readers_costs_bounded_memory(fleet: Fleet, tmp_path: Path) -> None:
    """Each costs at most 64 KiB plus one read of the event loop, and no more while it does not read."""
    count = 500
    engine = await fleet.engine(answers_with(http_reply(b"x" * 8 * MEBIBYTE)))
    settings = {"METRICS_CACHE_TTL_SECONDS": "60"}
    raise_file_limit()
    with await asyncio.to_thread(FreshProxy, tmp_path, [engine.url], **settings) as proxy, ExitStack() as readers:
        for _ in range(20):
            assert (await send(proxy.url, "/v1/embeddings", {})).status == 200
        at_first = resident_bytes(proxy)
        for _ in range(count):
            reader = readers.enter_context(await connected(proxy.url, receive_buffer_bytes=4096))
            await asyncio.get_running_loop().sock_sendall(reader, POST + b"Content-Length: 2\r\n\r\n{}")
        await eventually(lambda: len(engine.served) == 20 + count, 60)
        await asyncio.sleep(5)
        sizes = []
        for _ in range(6):
            sizes.append(resident_bytes(proxy))
            await asyncio.sleep(1)
        assert (await send(proxy.url, "/livez")).status == 200
        assert engine.open_requests >= count
    assert (sizes[0] - at_first) / count < MOST_HELD_BYTES
    assert max(sizes) - min(sizes) < 4 * MEBIBYTE
    await eventually(lambda: not engine.open_requests)


def resident_bytes(proxy: Proxy) -> int:
    pages = int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def raise_file_limit() -> int:
    """Raise the open-file limit of this process; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@pytest.mark.parametrize(
    ("framing", "drop"),
    [(b"Content-Length: 1000\r\n\r\n", b"x"), (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")],
    ids=["with a length", "in chunks"],
)
async def test_cf13_slow_body_holds_no_slot_and_gets_408_in_time(fleet: Fleet, framing: bytes, drop: bytes) -> None:
    engine = await fleet.engine(owner="vllm")
    proxy = await fleet.proxy(
        engine, max_allowed_request_queue=1, client_body_timeout_seconds=0.5, client_body_total_timeout_seconds=1
    )
    connections = len(engine.connections)
    dripping, silent = await connect(proxy), await connect(proxy)
    for client in (dripping, silent):
        client.send(POST + framing + drop)
    began = time.monotonic()

    async def drip() -> None:
        while True:
            await asyncio.sleep(0.1)
            dripping.send(drop)

    dripper = asyncio.get_running_loop().create_task(drip())
    await eventually(lambda: is_holding(proxy, 2))
    assert await proxy.metric("backend_requests_in_flight") == 0
    assert len(engine.connections) == connections
    assert (await proxy.post()).status == 200

    assert (await silent.reply()).status == 408
    assert time.monotonic() - began > 0.3
    assert (await dripping.reply()).status == 408
    assert time.monotonic() - began > 0.9
    dripper.cancel()
    for client in (silent, dripping):
        client.leave()
    assert len(engine.served) == 1
    assert await proxy.metric("requests_total", code="408") == 2


async def is_holding(proxy: RunningProxy, count: int) -> bool:
    return await proxy.metric("request_body_bytes_in_flight") >= count


@pytest.mark.slow_faults
async def test_cf15_ten_thousand_idle_connections_leave_room_for_active_clients(fleet: Fleet, tmp_path: Path) -> None:
    """The longest idle connections are closed when there are too many, and all of them in the end."""
    count, most = 10_000, 8_000
    assert raise_file_limit() >= 2 * count, "needs a hard limit of open files of 20,000 (ulimit -Hn)"
    engine = await fleet.engine()
    settings = {"MAX_CLIENT_CONNECTIONS": str(most), "CLIENT_KEEP_ALIVE_SECONDS": "20"}
    loop = asyncio.get_running_loop()
    with await asyncio.to_thread(FreshProxy, tmp_path, [engine.url], **settings) as proxy, ExitStack() as stack:
        idle = [stack.enter_context(await connected(proxy.url)) for _ in range(count)]
        began = time.monotonic()
        for _ in range(20):
            assert (await send(proxy.url, CHAT, chat())).status == 200
        assert time.monotonic() - began < SOON_SECONDS
        for one in idle[: count - most]:
            assert await loop.sock_recv(one, 1) == b""
        still_open = idle[count - most + 100 :]
        with pytest.raises(BlockingIOError):
            still_open[-1].recv(1)
        async with asyncio.timeout(40):
            for one in still_open:
                assert await loop.sock_recv(one, 1) == b""


# --- invalid requests


@pytest.mark.parametrize(
    ("fields", "statuses"),
    [
        ("Authorization: Bearer right-right-right\r\nContent-Length: 2\r\n", [100, 200]),
        ("Authorization: Bearer right-right-right\r\nTransfer-Encoding: chunked\r\n", [100, 200]),
        ("Authorization: Bearer wrong\r\nContent-Length: 2\r\n", [401]),
        ("Authorization: Bearer right-right-right\r\nContent-Length: 2000\r\n", [413]),
    ],
    ids=["valid", "valid in chunks", "without a key", "too long"],
)
async def test_cf19_client_that_waits_for_100_gets_it_or_a_refusal_at_once(
    fleet: Fleet, fields: str, statuses: list[int]
) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, api_keys="me:right-right-right", max_request_body_bytes=1000)
    client = await connect(proxy)
    client.send(POST + f"Expect: 100-continue\r\n{fields}\r\n".encode())
    status, _, _ = await client.head()
    seen = [status]
    if status == 100:
        assert not engine.served
        client.send(b"2\r\n{}\r\n0\r\n\r\n" if "chunked" in fields else b"{}")
        seen.append((await client.reply()).status)
        client.leave()
    assert seen == statuses
    assert len(engine.served) == (200 in statuses)


@pytest.mark.parametrize(
    ("framing", "block"),
    [
        (b"Content-Length: %d\r\n" % (200 * MEBIBYTE), b"x" * 65536),
        (b"Content-Length: 99999999999999999\r\n", b"x" * 65536),
        (b"Transfer-Encoding: chunked\r\n", chunk(b"x" * 65536)),
    ],
    ids=["200 MiB", "a huge length", "endless chunks"],
)
async def test_cf21_too_long_body_is_refused_as_soon_as_its_length_is_known(
    fleet: Fleet, framing: bytes, block: bytes
) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, max_request_body_bytes=MEBIBYTE)
    client = await connect(proxy)
    client.send(POST + framing + b"\r\n")
    sent = 0

    async def pour() -> None:
        nonlocal sent
        while sent < 200 * MEBIBYTE:
            client.send(block)
            await client.sent()
            sent += len(block)
            await asyncio.sleep(0)

    pouring = asyncio.get_running_loop().create_task(pour())
    try:
        reply = await client.reply()
    finally:
        pouring.cancel()
    client.leave()
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "body_too_large")
    assert reply.fields["connection"] == "close"
    assert sent < 20 * MEBIBYTE  # buffered by the kernel or discarded
    assert await proxy.metric("request_body_bytes_in_flight") == 0
    assert not engine.served


# --- unusual clients


async def test_cf23_stream_to_an_http_1_0_client_ends_with_the_connection(fleet: Fleet) -> None:
    engine = await fleet.engine(answers_with(STREAM_HEAD, chunk(EVENT), chunk(EVENT), b"0\r\n\r\n"))
    proxy = await fleet.proxy(engine)
    client = await connect(proxy)
    body = json.dumps(chat(stream=True)).encode()
    client.send(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    status, _, fields = await client.head()
    assert (status, fields["connection"]) == (200, "close")
    assert not fields.keys() & {"transfer-encoding", "content-length"}
    assert await client.rest() == EVENT * 2


async def test_cf23_broken_stream_to_an_http_1_0_client_ends_in_a_reset(fleet: Fleet) -> None:
    """The regular end of such a stream is the end of its connection."""

    async def dies(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(EVENT))
        connection.finish()

    proxy = await fleet.proxy(await fleet.engine(dies))
    client = await connect(proxy)
    client.send(f"POST {CHAT} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    await client.head()
    assert await client.is_reset()


# --- storms of retries


async def test_cf25_storm_of_immediate_retries_is_refused_cheaply_and_passes(fleet: Fleet) -> None:
    count, seconds = 200, 1.0
    gate = Gate()
    engine = await fleet.engine(gate, owner="vllm")
    proxy = await fleet.proxy(
        engine, max_requests_in_flight=5, max_allowed_request_queue=count, max_client_connections=count + 50
    )
    until_seconds = time.monotonic() + seconds
    refusals = 0
    waits: list[float] = []
    body = json.dumps(chat()).encode()
    asking = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def asks_again_and_again(client: Client) -> int:
        nonlocal refusals
        while True:
            reply = await client.ask(asking)
            if reply.status == 200:
                return 200
            assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "overloaded")
            assert reply.fields["retry-after"] == "1"
            refusals += 1
            if time.monotonic() > until_seconds:
                gate.opened.set()

    async def asks_for_its_health() -> None:
        while not gate.opened.is_set():
            began = time.monotonic()
            assert (await send(proxy.url, "/livez")).status == 200
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.02)

    clients = [await connect(proxy) for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        group.create_task(asks_for_its_health())
        storm = [group.create_task(asks_again_and_again(client)) for client in clients]
    assert [one.result() for one in storm] == [200] * count
    assert len(engine.served) == count
    assert refusals > count
    assert max(waits) < SOON_SECONDS
    assert await proxy.metric("shed_total", reason="requests") == refusals
    for client in clients:
        client.leave()
    assert (await proxy.post()).status == 200
    assert await proxy.state(engine) == "up"
