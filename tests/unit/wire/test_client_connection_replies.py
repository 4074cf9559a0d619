"""Outgoing replies: framing, slow and departed clients, broken replies, deadlines and shutdown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from inference_engine_proxy_server.errors import BackendBroke, CapacityError, ProxyError
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from support.fakes.front import LIMITS, Client, Front, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
EVENTS = b"content-type: text/event-stream\r\n"
SMALL = 4096


async def sends_hello(exchange: Exchange) -> None:
    exchange.respond(200, b"", b"hello")


def streams(*pieces: bytes, fields: bytes = EVENTS, length: int | None = None) -> Callable[[Exchange], None]:
    """Begins a reply, and leaves it open."""

    def begin(exchange: Exchange) -> None:
        exchange.begin(200, b" OK", fields, length)
        for piece in pieces:
            exchange.write(piece)
        exchange.flush()

    return begin


def breaks_after(begin: Callable[[Exchange], None]) -> Callable[[Exchange], Coroutine[None, None, None]]:
    async def handle(exchange: Exchange) -> None:
        begin(exchange)
        raise BackendBroke("The backend is gone.")

    return handle


class Waiting:
    """A handler that may begin a reply and then waits forever, and how the handler ended."""

    def __init__(self, begin: Callable[[Exchange], None] = lambda _: None) -> None:
        self._begin = begin
        self.started = 0
        self.cancelled = 0

    async def __call__(self, exchange: Exchange) -> None:
        self._begin(exchange)
        self.started += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.mark.parametrize("leave", [Client.leave, Client.reset, Client.half_close], ids=["fin", "rst", "half-close"])
@pytest.mark.parametrize("sent_ahead", [b"", GET], ids=["", "and-sent-ahead"])
async def test_a_client_that_leaves_ends_its_request(leave: Callable[[Client], None], sent_ahead: bytes) -> None:
    handler = Waiting()
    async with Front(handler) as front:
        client = await front.connect()
        client.send(GET + sent_ahead)
        await until(lambda: handler.started)
        leave(client)
        await until(lambda: not front.connections and not front.tasks)
        assert (handler.started, handler.cancelled) == (1, 1)
        assert [(exchange.status, exchange.outcome) for exchange in front.observed] == [(499, Outcome.CLIENT_LEFT)]


@pytest.mark.parametrize("leave", [Client.leave, Client.reset, Client.half_close], ids=["fin", "rst", "half-close"])
async def test_a_client_that_leaves_ends_its_stream(leave: Callable[[Client], None]) -> None:
    handler = Waiting(streams(b"data: 1\n\n"))
    async with Front(handler) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        leave(client)
        await until(lambda: not front.connections and not front.tasks)
        assert handler.cancelled == 1
        assert [(exchange.status, exchange.outcome) for exchange in front.observed] == [(200, Outcome.CLIENT_LEFT)]


async def test_a_reply_completed_while_its_client_leaves_is_observed_once() -> None:
    started = asyncio.Event()

    async def completes_late(exchange: Exchange) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await sends_hello(exchange)

    async with Front(completes_late) as front:
        client = await front.connect()
        client.send(GET)
        await started.wait()
        client.reset()
        await until(lambda: not front.tasks)
        assert [exchange.outcome for exchange in front.observed] == [Outcome.CLIENT_LEFT]


async def test_a_client_that_leaves_between_requests_causes_no_exchange() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        await client.ask(GET)
        client.leave()
        await until(lambda: not front.connections)
        assert [exchange.status for exchange in front.observed] == [200]


async def test_the_reply_to_an_unexpected_error_has_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(exchange: Exchange) -> None:
        raise ValueError(exchange.head.path)

    async with Front(fails) as front:
        client = await front.connect()
        reply = await client.ask(GET.replace(b"Host", b"X-Request-Id: mine\r\nHost"))
        assert (reply.status, reply.fields["x-request-id"]) == (500, "mine")
        error = json.loads(reply.body)["error"]
        assert (error["code"], error["request_id"]) == ("internal_error", "mine")
        assert "ValueError" not in error["message"]
        assert "request mine: unexpected error" in caplog.text
        assert (await client.ask(GET)).status == 500  # the connection is still usable
        assert len(front.observed) == 2


async def test_a_proxy_error_determines_the_reply() -> None:
    async def full(_: Exchange) -> None:
        raise CapacityError("Full.", retry_after_seconds=7)

    async with Front(full) as front:
        client = await front.connect()
        reply = await client.ask(GET)
        assert (reply.status, reply.fields["retry-after"]) == (503, "7")


async def test_a_request_cancelled_by_the_host_gets_a_reply_about_the_shutdown() -> None:
    handler = Waiting()
    async with Front(handler) as front:
        client = await front.connect()
        client.send(GET)
        await until(lambda: handler.started)
        for task in front.tasks:
            task.cancel()
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "shutting_down")
        assert handler.cancelled == len(front.observed) == 1


@pytest.mark.parametrize(
    ("path", "event_begins"),
    [
        (b"/v1/chat/completions", b'data: {"error"'),
        (b"/v1/messages", b'event: error\ndata: {"type": "error"'),
        (b"/v1/responses", b"event: response.failed\ndata: "),
    ],
)
async def test_a_stream_broken_between_events_ends_with_one_error_event(path: bytes, event_begins: bytes) -> None:
    async with Front(breaks_after(streams(b"data: 1\n\n"))) as front:  # BF11
        client = await front.connect()
        client.send(b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        await client.head()
        received = await client.rest()
        first, _, event = received.partition(b"data: 1\n\n\r\n")
        assert first == b"9\r\n"
        assert event.partition(b"\r\n")[2].startswith(event_begins)
        assert event.endswith(b"\n\n\r\n")
        assert received.count(b"data: ") == 2
        assert b"[DONE]" not in received
        await until(lambda: front.observed)
        assert [(exchange.status, exchange.outcome) for exchange in front.observed] == [(200, Outcome.BROKEN)]


@pytest.mark.parametrize(
    ("begin", "received"),
    [
        (streams(b"data: 1\n"), b"8\r\ndata: 1\n\r\n"),
        (streams(b"{}", fields=b"content-type: application/json\r\n"), b"2\r\n{}\r\n"),
        (streams(b"data: 1\n\n", length=100), b"data: 1\n\n"),
    ],
    ids=["inside-an-event", "no-events", "known-length"],
)
async def test_any_other_broken_reply_just_ends_early(begin: Callable[[Exchange], None], received: bytes) -> None:
    async with Front(breaks_after(begin)) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        assert await client.rest() == received
        assert [exchange.outcome for exchange in front.observed] == [Outcome.BROKEN]


async def test_a_broken_reply_without_framing_ends_in_a_reset() -> None:
    release = asyncio.Event()

    async def breaks(exchange: Exchange) -> None:
        streams(b"data: 1\n")(exchange)
        await release.wait()
        raise BackendBroke("The backend is gone.")

    async with Front(breaks) as front:
        client = await front.connect()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.head()
        assert await client.read(8) == b"data: 1\n"
        release.set()
        assert await client.is_reset()


async def test_http_1_0_gets_no_chunks_and_its_reply_ends_with_the_connection() -> None:
    async def handle(exchange: Exchange) -> None:
        streams(b"data: 1\n\n", b"data: 2\n\n")(exchange)
        exchange.end()

    async with Front(handle) as front:  # CF23
        client = await front.connect()
        reply = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert "transfer-encoding" not in reply.fields
        assert (reply.fields["connection"], reply.body) == ("close", b"data: 1\n\ndata: 2\n\n")


async def test_an_http_1_0_connection_is_kept_open_only_on_request() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        for _ in range(2):
            reply = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (reply.fields["connection"], reply.body) == ("keep-alive", b"hello")
        reply = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert (reply.fields["connection"], reply.body) == ("close", b"hello")
        assert await client.rest() == b""


async def test_a_connection_is_closed_if_the_client_asks_for_it() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        reply = await client.ask(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert reply.fields["connection"] == "close"
        assert await client.rest() == b""


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_replies_without_body_keep_the_connection_in_sync(method: bytes, status: int) -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.respond(status, b"", b"hello")

    async with Front(handle) as front:  # CF24
        client = await front.connect()
        for _ in range(2):
            reply = await client.ask(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", has_body=False)
            assert reply.status == status
            assert ("content-length" in reply.fields) is (status != 204)


class Source:
    """Counts how often it is paused and resumed."""

    is_unanswered = False

    def __init__(self) -> None:
        self.paused = 0
        self.resumed = 0

    def comment_sent(self) -> None:
        raise AssertionError

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.resumed += 1


async def test_a_slow_client_pauses_the_source_until_it_has_caught_up() -> None:
    source = Source()
    size = 500_000

    async def handle(exchange: Exchange) -> None:
        exchange.source = source
        exchange.begin(200, b"", b"", 2 * size)
        exchange.write(bytes(size))
        await asyncio.get_running_loop().create_task(until(lambda: source.resumed))
        exchange.write(bytes(size))
        exchange.end()

    async with Front(handle, send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await until(lambda: source.paused)
        assert not source.resumed
        assert len((await client.reply()).body) == 2 * size
        assert source.resumed >= 1


async def big(exchange: Exchange) -> None:
    exchange.respond(200, b"", bytes(300_000))


CLOSE = GET.replace(b"Host", b"Connection: close\r\nHost")


@pytest.mark.parametrize("ask", [GET, CLOSE], ids=["keep-alive", "close"])
async def test_a_client_that_reads_nothing_is_cut_off(ask: bytes) -> None:
    async with Front(big, replace(LIMITS, write_stall_seconds=0.1), send_buffer_bytes=SMALL) as front:  # CF11
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(ask)
        await until(lambda: front.observed)
        await until(lambda: not front.connections)


async def test_a_stream_whose_client_reads_nothing_is_ended() -> None:
    handler = Waiting(streams(bytes(300_000)))
    async with Front(handler, replace(LIMITS, write_stall_seconds=0.1), send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await until(lambda: handler.cancelled)
        assert [exchange.outcome for exchange in front.observed] == [Outcome.CLIENT_LEFT]


async def test_a_client_that_reads_all_but_the_last_bytes_is_cut_off() -> None:
    async with Front(big, replace(LIMITS, write_stall_seconds=0.1), send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(CLOSE)
        await client.head()
        connection = next(iter(front.connections))
        transport = connection._transport  # noqa: SLF001 - nothing public shows the unsent bytes
        while transport.get_write_buffer_size() > 16_384:  # the event loop's low-water mark
            await client.read(500)
        client.stop_reading()
        await until(lambda: not front.connections)


@pytest.mark.parametrize("size", [300_000, 60_000], ids=["much", "less-than-the-write-buffer"])
async def test_a_client_that_reads_slowly_but_steadily_gets_the_whole_reply(size: int) -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.respond(200, b"", bytes(size))

    limits = replace(LIMITS, write_stall_seconds=1)
    async with Front(handle, limits, send_buffer_bytes=SMALL) as front:  # CF10
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(CLOSE)
        await client.head()
        for _ in range(30):
            await client.read(size // 30)
            await asyncio.sleep(0.05)  # slow on purpose: longer than a stall, all together
        assert await client.rest() == b""


async def test_a_client_that_reads_byte_by_byte_is_cut_off() -> None:
    limits = replace(LIMITS, write_stall_seconds=0.6)
    handler = Waiting(streams(bytes(300_000)))
    async with Front(handler, limits, send_buffer_bytes=SMALL) as front:  # CF14
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await client.head()
        async with asyncio.TaskGroup() as reading:
            trickle = reading.create_task(takes_next_to_nothing(client))
            await until(lambda: handler.cancelled)
            trickle.cancel()
        assert [exchange.outcome for exchange in front.observed] == [Outcome.CLIENT_LEFT]


async def takes_next_to_nothing(client: Client) -> None:
    while True:
        await client.read(100)
        await asyncio.sleep(0.01)  # slow on purpose


async def test_a_client_that_reads_tokens_as_they_arrive_is_never_behind() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.begin(200, b" OK", EVENTS, None)
        for _ in range(30):
            exchange.write(b"data: 1\n\n")
            await asyncio.sleep(0.02)  # slow on purpose
        exchange.end()

    async with Front(handle, replace(LIMITS, write_stall_seconds=0.05)) as front:
        client = await front.connect()
        assert (await client.ask(GET)).body == b"data: 1\n\n" * 30


IN_TIME = replace(LIMITS, request_seconds=0.2)


async def test_a_reply_that_does_not_begin_in_time_becomes_a_504_and_cancels_its_request() -> None:
    handler = Waiting()
    async with Front(handler, IN_TIME) as front:
        client = await front.connect()
        for number in (1, 2):  # the connection is still usable
            reply = await client.ask(GET)
            assert (reply.status, json.loads(reply.body)["error"]["code"]) == (504, "request_timeout")
            assert reply.fields["x-should-retry"] == "false"
            await until(lambda: not front.tasks)
            assert handler.cancelled == number
        assert front.load.requests == 0


async def test_a_stream_that_does_not_end_in_time_ends_with_one_error_event() -> None:
    handler = Waiting(streams(b"data: 1\n\n"))
    async with Front(handler, IN_TIME) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        received = await client.rest()
        assert received.startswith(b"9\r\ndata: 1\n\n\r\n")
        assert b'"code": "request_timeout"' in received
        assert received.count(b"data: ") == 2
        assert b"[DONE]" not in received
        assert handler.cancelled == 1
        assert [exchange.outcome for exchange in front.observed] == [Outcome.BROKEN]


async def test_a_reply_that_its_client_does_not_read_has_the_same_deadline() -> None:
    handler = Waiting(streams(bytes(300_000)))
    async with Front(handler, IN_TIME, send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await until(lambda: handler.cancelled)
        assert [exchange.outcome for exchange in front.observed] == [Outcome.BROKEN]


async def test_a_reply_cut_off_at_its_deadline_waits_for_its_client_only_briefly() -> None:
    limits = replace(IN_TIME, write_stall_seconds=0.3)
    async with Front(Waiting(streams(bytes(300_000))), limits, send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await until(lambda: front.observed)
        await until(lambda: not front.connections)


async def test_a_reply_in_time_is_complete_and_the_next_one_has_its_own_deadline() -> None:
    async def takes_a_while(exchange: Exchange) -> None:
        await asyncio.sleep(0.12)  # slow on purpose
        await sends_hello(exchange)

    async with Front(takes_a_while, replace(LIMITS, request_seconds=0.5)) as front:
        client = await front.connect()
        for _ in range(6):
            assert (await client.ask(GET)).body == b"hello"


async def test_the_next_request_waits_until_the_client_has_read_the_reply() -> None:
    async with Front(big, send_buffer_bytes=SMALL) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET + GET)
        await until(lambda: front.observed)
        client.send(GET)
        for _ in range(5):
            await asyncio.sleep(0.005)
        assert len(front.observed) == 1
        assert [len((await client.reply()).body) for _ in range(3)] == [300_000] * 3


async def test_on_shutdown_an_idle_connection_is_closed() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        await client.ask(GET)
        next(iter(front.connections)).shutdown()
        assert await client.rest() == b""


@pytest.mark.parametrize("is_new", [True, False])
async def test_on_shutdown_a_request_on_its_way_on_a_connection_in_use_is_served(is_new: bool) -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        if not is_new:
            await client.ask(GET)
        await until(lambda: front.connections)
        next(iter(front.connections)).shutdown()
        reply = await client.ask(GET)
        assert (reply.body, reply.fields["connection"]) == (b"hello", "close")
        assert await client.rest() == b""


async def test_on_shutdown_a_request_in_progress_is_answered_before_the_connection_closes() -> None:
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await release.wait()
        await sends_hello(exchange)

    async with Front(waits) as front:
        client = await front.connect()
        client.send(GET + GET)
        await until(lambda: front.tasks)
        next(iter(front.connections)).shutdown()
        release.set()
        reply = await client.reply()
        assert (reply.body, reply.fields["connection"]) == (b"hello", "close")
        assert await client.rest() == b""
        assert len(front.observed) == 1


async def test_on_shutdown_a_stream_that_has_begun_is_completed() -> None:
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        streams(b"data: 1\n\n")(exchange)
        await release.wait()
        exchange.end()

    async with Front(waits) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        next(iter(front.connections)).shutdown()
        release.set()
        assert await client.rest() == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"


async def test_on_shutdown_a_request_that_has_begun_to_arrive_is_served() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        client.send(GET[:10])
        await until(lambda: front.connections)
        connection = next(iter(front.connections))
        await until(lambda: connection._reader.has_begun)  # noqa: SLF001
        connection.shutdown()
        reply = await client.ask(GET[10:])
        assert (reply.body, reply.fields["connection"]) == (b"hello", "close")
        assert await client.rest() == b""


async def test_an_error_after_the_reply_changes_nothing() -> None:
    async def fails_late(exchange: Exchange) -> None:
        await sends_hello(exchange)
        raise ProxyError("Late.")

    async with Front(fails_late) as front:
        client = await front.connect()
        assert (await client.ask(GET)).body == b"hello"
        assert (await client.ask(GET)).body == b"hello"
        assert len(front.observed) == 2


OFTEN_SECONDS = 0.02  # the front checks deadlines twice as often


class Heartbeats:
    """Counts the requests for a heartbeat; ``act`` is called with the exchange."""

    def __init__(self, act: Callable[[Exchange], None] = lambda _: None) -> None:
        self.count = 0
        self._act = act

    def __call__(self, exchange: Exchange) -> None:
        self.count += 1
        self._act(exchange)


async def test_a_client_that_waits_needs_a_heartbeat_after_each_interval() -> None:
    heartbeats = Heartbeats()
    async with Front(Waiting(), heartbeat_seconds=OFTEN_SECONDS, send_heartbeat=heartbeats) as front:
        client = await front.connect()
        client.send(GET)
        await until(lambda: heartbeats.count == 5)
        client.leave()
        await until(lambda: front.observed)
        count = heartbeats.count
        await asyncio.sleep(0.1)
        assert heartbeats.count == count


async def test_a_connection_without_a_request_needs_no_heartbeat() -> None:
    heartbeats = Heartbeats()
    async with Front(sends_hello, heartbeat_seconds=OFTEN_SECONDS, send_heartbeat=heartbeats) as front:
        client = await front.connect()
        await client.ask(GET)
        client.send(GET[:10])
        await asyncio.sleep(0.2)
        client.send(GET[10:])
        assert (await client.reply()).body == b"hello"
    assert heartbeats.count == 0


async def test_a_comment_postpones_the_next_heartbeat() -> None:
    heartbeats = Heartbeats()

    async def comments(exchange: Exchange) -> None:
        for _ in range(30):
            exchange.send_comment(b": c\n\n")
            await asyncio.sleep(0.05)
        await asyncio.get_running_loop().create_future()

    async with Front(comments, heartbeat_seconds=1, send_heartbeat=heartbeats) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        seen = b""
        while seen.count(b": c") < 30:
            seen += await client.some()
        assert heartbeats.count == 0
        await until(lambda: heartbeats.count == 1)


async def test_heartbeats_do_not_postpone_the_deadline_of_a_reply() -> None:
    def send(exchange: Exchange) -> None:
        exchange.send_comment(b": c\n\n")

    handler, heartbeats = Waiting(), Heartbeats(send)
    async with Front(handler, IN_TIME, heartbeat_seconds=OFTEN_SECONDS, send_heartbeat=heartbeats) as front:
        client = await front.connect()
        client.send(GET)
        assert (await client.head())[0] == 200
        assert b'"code": "request_timeout"' in await client.rest()
        assert heartbeats.count > 1
        assert [exchange.status for exchange in front.observed] == [504]


async def test_a_reply_with_unsent_bytes_is_not_cut_off_by_a_heartbeat() -> None:
    """The client is slow, but less is unsent than what makes it count as behind."""
    heartbeats = Heartbeats()
    size = 50_000
    async with Front(
        Waiting(streams(bytes(size), length=size)),
        send_buffer_bytes=SMALL,
        heartbeat_seconds=OFTEN_SECONDS,
        send_heartbeat=heartbeats,
    ) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await until(lambda: heartbeats.count > 2)
        await client.head()
        assert await client.read(size) == bytes(size)


async def test_a_client_that_was_behind_needs_heartbeats_again() -> None:
    heartbeats = Heartbeats()
    size = 300_000
    async with Front(
        Waiting(streams(bytes(size))),
        send_buffer_bytes=SMALL,
        heartbeat_seconds=OFTEN_SECONDS,
        send_heartbeat=heartbeats,
    ) as front:
        client = await front.connect(receive_buffer_bytes=SMALL)
        client.send(GET)
        await asyncio.sleep(0.2)
        assert heartbeats.count == 0
        await client.head()
        await client.read(size)
        await until(lambda: heartbeats.count > 2)


async def test_a_comment_does_not_postpone_the_deadline_of_a_reply() -> None:
    def comment(exchange: Exchange) -> None:
        exchange.send_comment(b": c\n\n")

    async with Front(Waiting(comment), IN_TIME, heartbeat_seconds=3600.0) as front:
        client = await front.connect()
        client.send(GET)
        await client.head()
        assert b'"code": "request_timeout"' in await client.rest()
