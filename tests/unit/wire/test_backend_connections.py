from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from inference_engine_proxy_server.errors import BackendBroke, BackendUnreachable, CapacityError
from inference_engine_proxy_server.wire import backend_connections
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.backend_connections import BackendConnections
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.idle_limit import IdleReserve
from inference_engine_proxy_server.wire.origin import Origin
from inference_engine_proxy_server.wire.reply_head import ReplyHead, ReplyHeadReader
from support.fakes.back import GET, LIMITS, Sink, ask, connections_to
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.fakes.front import until
from support.fakes.memory import turns
from support.ports import unused_url

OK = answering(http_reply())
REFUSED = "127.0.0.2"  # engines here listen on 127.0.0.1 only


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://llm-1:8080", Origin("llm-1", 8080, False, "llm-1", b"llm-1:8080", b"")),
        ("http://llm-1/", Origin("llm-1", 80, False, "llm-1", b"llm-1", b"")),
        ("https://user:key@llm-1/a/b/", Origin("llm-1", 443, True, "llm-1", b"llm-1", b"/a/b")),
        ("http://[::1]:80", Origin("::1", 80, False, "::1", b"[::1]:80", b"")),
    ],
)
def test_an_origin_is_read_from_a_base_url(url: str, origin: Origin) -> None:
    assert Origin.of(url) == origin


@pytest.mark.parametrize(
    ("url", "authority"),
    [("http://10.0.0.3:80", b"a.test:80"), ("https://10.0.0.3", b"a.test"), ("http://[fd00::3]:8080", b"a.test:8080")],
)
def test_a_server_that_is_known_by_its_address_has_its_name_in_host_and_certificate(url: str, authority: bytes) -> None:
    origin = Origin.of(url, "a.test")
    assert (origin.server_name, origin.authority) == ("a.test", authority)
    assert origin.host == Origin.of(url).host


async def in_use(connections: BackendConnections, count: int) -> list[BackendConnection]:
    """``count`` connections, each of which has served a request and has not been released."""
    opened = [await connections.connect() for _ in range(count)]
    for connection in opened:
        await connection.request([GET], Sink(), is_head=False)
    return opened


async def test_the_most_recently_used_connection_is_reused_first() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        first, second, third = await in_use(connections, 3)
        for connection in (second, third, first):
            connections.release(connection)
        assert [connections.take_idle() for _ in range(4)] == [first, third, second, None]


async def test_an_idle_connection_is_closed_after_the_idle_time() -> None:
    limits = replace(LIMITS, idle_seconds=0.1)
    async with FakeEngine(OK) as engine, connections_to(engine.url, limits) as connections:
        await ask(connections)
        assert await engine.connections[0].ended == "eof"
        assert connections.take_idle() is None


@pytest.mark.parametrize(
    ("promise", "kept_seconds"),
    [(b"", 10), (b"timeout=5, max=100", 4), (b"timeout=60", 10), (b"timeout=1", 0), (b"timeout=0", 0), (b"max=5", 10)],
)
async def test_a_connection_is_kept_a_second_less_than_the_backend_announces(promise: bytes, kept_seconds: int) -> None:
    reply = http_reply(fields=b"Keep-Alive: " + promise + b"\r\n" if promise else b"")
    async with FakeEngine(answering(reply)) as engine, connections_to(engine.url) as connections:
        (connection,) = await in_use(connections, 1)
        now = asyncio.get_running_loop().time()
        connections.release(connection)
        if kept_seconds:
            assert connection.deadline == pytest.approx(now + kept_seconds, abs=0.9)
            assert connections.take_idle() is connection
        else:
            assert connections.take_idle() is None
            await engine.connections[0].ended


async def test_at_most_32_idle_connections_are_kept_without_a_reserve() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        for connection in await in_use(connections, 35):
            connections.release(connection)
        await until(lambda: sum(connection.ended.done() for connection in engine.connections) == 3)
        assert sum(connections.take_idle() is not None for _ in range(40)) == 32


async def burst(connections: BackendConnections, count: int) -> None:
    """``count`` concurrent requests, on idle connections where there are any."""
    taken = [connections.take_idle() or await connections.connect() for _ in range(count)]
    for connection in taken:
        await connection.request([GET], Sink(), is_head=False)
    for connection in taken:
        connections.release(connection)


async def test_a_second_burst_needs_no_new_connections() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url, reserve=IdleReserve(200)) as connections:
        await burst(connections, 200)
        await burst(connections, 200)
        assert len(engine.connections) == 200


async def test_backends_share_the_reserve_of_idle_connections() -> None:
    reserve = IdleReserve(40)
    async with (
        FakeEngine(OK) as one,
        FakeEngine(OK) as other,
        connections_to(one.url, reserve=reserve) as first,
        connections_to(other.url, reserve=reserve) as second,
    ):
        await burst(first, 60)
        await burst(second, 60)
        assert sum(first.take_idle() is not None for _ in range(100)) == 60  # 32, and a step of 32
        assert sum(second.take_idle() is not None for _ in range(100)) == 40  # 32, and the rest of the reserve
        first.close()
        await burst(second, 60)
        assert sum(second.take_idle() is not None for _ in range(100)) == 60


async def test_unneeded_idle_connections_close_and_return_to_the_reserve() -> None:
    limits, reserve = replace(LIMITS, idle_seconds=0.1), IdleReserve(32)
    async with FakeEngine(OK) as engine, connections_to(engine.url, limits, reserve) as connections:
        await burst(connections, 50)
        assert reserve.left == 0
        await until(lambda: all(connection.ended.done() for connection in engine.connections))
        connections.discard(await connections.connect())  # as each poll does
        assert reserve.left == 32


async def test_stale_connections_are_dropped_to_make_room() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        *others, last = await in_use(connections, 33)
        for connection in others:
            connections.release(connection)
        for connection_of_engine in engine.connections[:32]:
            connection_of_engine.reset()
        await until(lambda: all(connection.is_stale() for connection in others))
        connections.release(last)
        assert connections.take_idle() is last
        assert connections.take_idle() is None


@pytest.mark.parametrize("wanted", [True, False])
async def test_connections_are_kept_only_if_both_sides_allow_it(*, wanted: bool) -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        connections.keep_alive(wanted=wanted)
        assert connections.keeps_alive is wanted
        await ask(connections)
        assert (connections.take_idle() is not None) is wanted
    async with connections_to("http://a", replace(LIMITS, idle_seconds=0)) as connections:
        connections.keep_alive(wanted=wanted)
        assert not connections.keeps_alive


async def test_close_closes_idle_connections() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        await ask(connections)
        connections.close()
        await engine.connections[0].ended
        assert connections.take_idle() is None


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["closed", "unsolicited-reply"])
async def test_a_stale_connection_is_detected_before_the_event_loop_sees_it(sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # BF05
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        async with connections_to(f"http://127.0.0.1:{listener.getsockname()[1]}") as connections:
            connection = await connections.connect()
            engine, _ = await loop.sock_accept(listener)
            with engine:
                engine.setblocking(False)
                result = connection.request([GET], Sink(), is_head=False)
                await loop.sock_recv(engine, 1000)
                await loop.sock_sendall(engine, http_reply())
                await result
                connections.release(connection)
                if sent:
                    engine.send(sent)
                else:
                    engine.close()
                # Longer than a connection counts as just used, and without letting the loop see the engine's action.
                time.sleep(0.15)  # noqa: ASYNC251
                assert connections.take_idle() is None


async def test_an_idle_connection_with_an_unsolicited_reply_is_closed() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:
        await ask(connections)
        engine.connections[0].send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await engine.connections[0].ended
        assert connections.take_idle() is None


@pytest.mark.parametrize("end", [EngineConnection.finish, EngineConnection.reset], ids=["fin", "rst"])
async def test_an_error_on_a_reused_connection_is_marked(end: Callable[[EngineConnection], None]) -> None:
    async def ends_at_the_second(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(http_reply())
        await connection.first_bytes()
        end(connection)

    async with FakeEngine(ends_at_the_second) as engine, connections_to(engine.url) as connections:  # BF06
        await ask(connections)
        with pytest.raises(BackendBroke) as broken:
            await ask(connections)
        assert broken.value.crossed_request
        assert len(engine.connections) == 1
        assert (await ask(connections)).body == b"hello"


async def test_a_backend_that_refuses_connections_is_unreachable() -> None:
    async with connections_to(unused_url()) as connections:  # BF01
        with pytest.raises(BackendUnreachable):
            await connections.connect()


async def test_a_backend_that_does_not_accept_is_unreachable_at_the_deadline() -> None:
    with socket.socket() as listener:  # BF02
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # the kernel drops connections that do not fit into the accept queue
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        limits = replace(LIMITS, connect_seconds=0.2)
        async with connections_to(f"http://127.0.0.1:{listener.getsockname()[1]}", limits) as connections:
            with pytest.raises(BackendUnreachable):
                await connections.connect()
        for filler in fillers:
            filler.close()


async def test_a_backend_without_tls_at_an_https_url_is_unreachable() -> None:
    async def speaks_plainly(connection: EngineConnection) -> None:
        await connection.first_bytes()
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with FakeEngine(speaks_plainly) as engine:
        async with connections_to(engine.url.replace("http", "https")) as connections:
            with pytest.raises(BackendUnreachable):
                await connections.connect()


async def test_an_unanswered_tls_handshake_is_named_at_the_deadline() -> None:
    async def says_nothing(connection: EngineConnection) -> None:
        await connection.first_bytes()

    limits = replace(LIMITS, connect_seconds=1.0)
    async with FakeEngine(says_nothing) as engine:
        async with connections_to(engine.url.replace("http", "https"), limits) as connections:
            with pytest.raises(BackendUnreachable) as raised:
                await connections.connect()
    assert raised.value.timed_out
    assert raised.value.reason.startswith("it does not answer the TLS handshake")


async def test_running_out_of_file_descriptors_is_not_the_backends_fault() -> None:
    async with FakeEngine(OK) as engine, connections_to(engine.url) as connections:  # OV12
        await ask(connections)
        connections.close()
        await turns(3)  # until the closed connection's descriptor is free
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)  # the lowest free descriptor
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            with pytest.raises(CapacityError):
                await connections.connect()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Resolver:
    """A name resolver that returns ``addresses``, fails or hangs, and counts its calls."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.failure: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def __call__(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.failure is not None:
            raise self.failure
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolver]:
    """Resolves every name to the given addresses, cached for no time by default, so each connection resolves again."""

    def install(*addresses: str, remember_seconds: float = 0.0) -> Resolver:
        resolver = Resolver(*addresses)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolver)
        monkeypatch.setattr(backend_connections, "_ADDRESS_SECONDS", remember_seconds)
        return resolver

    return install


def named(engine: FakeEngine) -> str:
    return f"http://llm.example:{engine.port}"


async def test_the_next_address_is_tried_and_then_preferred(resolve: Callable[..., Resolver]) -> None:
    resolver = resolve(REFUSED, "127.0.0.1", remember_seconds=100)
    async with FakeEngine(OK) as engine, connections_to(named(engine)) as connections:  # BF44
        for _ in range(3):
            connections.release(await connections.connect())
        assert resolver.asked == 1
        assert len(engine.connections) == 3


@pytest.mark.parametrize(
    ("addresses", "expected"), [(("127.0.0.1", REFUSED), 1), (("127.0.0.1", "::1"), 0), (("127.0.0.1",), 0)]
)
async def test_a_name_with_several_addresses_is_logged_once(
    resolve: Callable[..., Resolver], addresses: tuple[str, ...], expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    resolve(*addresses)
    async with FakeEngine(OK) as engine, connections_to(named(engine)) as connections:
        for _ in range(3):
            connections.release(await connections.connect())
    assert caplog.text.count("only one of them is used") == expected


def sent_location(url: str, line: bytes) -> bytes:
    """The line as the client gets it, in a reply of the backend at ``url``."""
    reader = ReplyHeadReader(HeadMemory[ReplyHead](), Origin.of(url).locations())
    found = reader.feed(b"HTTP/1.1 307 X\r\nx: 1\r\n" + line + b"\r\ncontent-length: 0\r\n\r\n")
    assert found is not None
    return found[0].passed_on.splitlines()[1]


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        ("http://llm:8080", b"http://llm:8080/v1/chat/completions", b"/v1/chat/completions"),
        ("http://llm:8080", b"https://LLM:8080/a?b#c", b"/a?b#c"),
        ("http://llm:8080", b"//llm:8080/a", b"/a"),
        ("http://llm:8080", b"http://llm:8080", b"/"),
        ("http://llm:8080", b"http://llm:8080?a", b"/?a"),
        ("http://llm:8080/base", b"http://llm:8080/base/v1/x", b"/v1/x"),
        ("http://llm:8080/base", b"http://llm:8080/based", b"/based"),
        ("http://llm", b"http://llm:80/a", b"/a"),
        ("http://[::1]:80", b"http://[::1]:80/a", b"/a"),
        ("http://llm:8080", b"/a", b"/a"),
        ("http://llm:8080", b"http://llm:80801/a", b"http://llm:80801/a"),
        ("http://llm:8080", b"http://other:8080/a", b"http://other:8080/a"),
        ("http://llm:8080", b"http://llm:8080.example/a", b"http://llm:8080.example/a"),
        ("http://llm:8080", b"http://llm:8080//other/a", b"http://llm:8080//other/a"),
        ("http://llm:8080", b"http://other/?u=http://llm:8080/a", b"http://other/?u=http://llm:8080/a"),
    ],
)
@pytest.mark.parametrize("name", [b"Location: ", b"location:", b"Content-Location: "])
def test_a_location_that_names_the_backend_becomes_a_path(
    url: str, location: bytes, expected: bytes, name: bytes
) -> None:
    assert sent_location(url, name + location) == name + expected


async def test_concurrent_connects_do_not_disturb_each_others_addresses(resolve: Callable[..., Resolver]) -> None:
    resolve(REFUSED, "127.0.0.1", remember_seconds=100)
    async with FakeEngine(OK) as engine, connections_to(named(engine)) as connections:

        async def after_turns(turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            connections.release(await connections.connect())

        async with asyncio.TaskGroup() as group:
            for turns in range(30):
                group.create_task(after_turns(turns))
        assert len(engine.connections) == 30


async def test_a_backend_is_unreachable_if_no_address_answers(resolve: Callable[..., Resolver]) -> None:
    resolver = resolve(REFUSED, "127.0.0.3", remember_seconds=100)
    async with FakeEngine(OK) as engine, connections_to(named(engine)) as connections:
        for _ in range(2):
            with pytest.raises(BackendUnreachable):
                await connections.connect()
        assert resolver.asked == 2  # addresses that did not work are not cached
        resolver.addresses = ()
        with pytest.raises(BackendUnreachable):
            await connections.connect()


@pytest.mark.parametrize(
    "failure", [socket.gaierror(socket.EAI_NONAME, "no such name"), UnicodeError("label too long")], ids=repr
)
async def test_a_name_that_does_not_resolve_is_unreachable(
    resolve: Callable[..., Resolver], failure: Exception
) -> None:
    resolver = resolve()
    resolver.failure = failure
    async with connections_to("http://llm.example") as connections:
        with pytest.raises(BackendUnreachable):
            await connections.connect()


async def test_a_backend_is_unreachable_at_the_deadline_if_name_resolution_hangs(
    resolve: Callable[..., Resolver],
) -> None:
    resolve().hangs = True
    async with connections_to("http://llm.example", replace(LIMITS, connect_seconds=0.1)) as connections:
        with pytest.raises(BackendUnreachable):
            await connections.connect()


def fails(resolver: Resolver) -> None:
    resolver.failure = socket.gaierror(socket.EAI_AGAIN, "try again")


def hangs(resolver: Resolver) -> None:
    resolver.hangs = True


@pytest.mark.parametrize("trouble", [fails, hangs])
async def test_the_last_known_address_is_used_while_name_resolution_fails(
    resolve: Callable[..., Resolver], trouble: Callable[[Resolver], None]
) -> None:
    resolver = resolve("127.0.0.1")
    limits = replace(LIMITS, connect_seconds=1)
    async with FakeEngine(OK) as engine, connections_to(named(engine), limits) as connections:
        connections.release(await connections.connect())
        trouble(resolver)
        connections.release(await connections.connect())
        assert len(engine.connections) == resolver.asked == 2


async def test_a_backend_that_moved_is_found_again(resolve: Callable[..., Resolver]) -> None:
    resolver = resolve("127.0.0.1")
    async with FakeEngine(OK) as engine, connections_to(named(engine)) as connections:
        connections.release(await connections.connect())
        resolver.addresses = (REFUSED,)
        with pytest.raises(BackendUnreachable):
            await connections.connect()
        resolver.addresses = ("127.0.0.1",)
        connections.release(await connections.connect())
        assert len(engine.connections) == 2


async def test_a_real_name_is_resolved() -> None:
    async with FakeEngine(OK) as engine, connections_to(f"http://localhost:{engine.port}") as connections:
        assert (await ask(connections)).body == b"hello"
