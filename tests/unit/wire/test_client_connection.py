"""Incoming requests: syntax, deadlines and limits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from support.fakes.front import LIMITS, Client, Front, Reply, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def echo(exchange: Exchange) -> None:
    """Replies with the received request."""
    head = exchange.head
    exchange.respond(200, b"", b"%b %b %b" % (head.method.encode(), head.target, exchange.body))


async def reports_statuses(front: Front, count: int) -> list[int]:
    await until(lambda: len(front.observed) >= count)
    return [exchange.status for exchange in front.observed]


async def test_two_requests_in_one_segment_are_answered_in_order() -> None:
    release = asyncio.Event()

    async def first_waits(exchange: Exchange) -> None:
        if exchange.head.path == "/first":
            await release.wait()
        await echo(exchange)

    async with Front(first_waits) as front:
        client = await front.connect()
        client.send(
            b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /second HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        client.send(b"GET /third HTTP/1.1\r\n")
        client.send(b"Host: a\r\n\r\n")
        await until(lambda: front.tasks)
        release.set()
        assert [(await client.reply()).body for _ in range(3)] == [b"POST /first hi", b"GET /second ", b"GET /third "]
        assert await reports_statuses(front, 3) == [200] * 3
        assert all(exchange.outcome is Outcome.COMPLETE for exchange in front.observed)


REQUESTS = {
    "chunked": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: 1\r\n\r\n",
    "length": b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "line-break-before": b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_is_parsed_alike_however_it_is_split(request_bytes: bytes) -> None:
    async with Front(echo) as front:
        client = await front.connect()
        for size in (1, 2, 3, 7, len(request_bytes)):
            for start in range(0, len(request_bytes), size):
                client.send(request_bytes[start : start + size])
                await asyncio.sleep(0)  # so that the bytes travel in a separate segment
            assert (await client.reply()).body == b"POST /a hello"
        assert await reports_statuses(front, 5) == [200] * 5


HEAD_PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /x HTTP/1.0",
        b"Host: a",
        b"Content-Length: 0",
        b"X: 1",
        b"X : 1",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
    ]
)


async def verdict(front: Front, segments: list[bytes]) -> int:
    """The status of the first reply to ``segments``."""
    client = await front.connect()
    for segment in segments:
        client.send(segment)
        await asyncio.sleep(0)
    return (await client.reply()).status


@given(st.lists(HEAD_PARTS, min_size=1, max_size=6).map(lambda parts: b"".join(parts).lstrip(b"\r\n")).filter(bool))
@settings(max_examples=40)
def test_a_head_is_judged_alike_whole_and_byte_by_byte(section: bytes) -> None:
    section = section.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def judge() -> None:
        async with Front(echo) as front:
            whole = await verdict(front, [section])
            assert await verdict(front, [bytes([byte]) for byte in section]) == whole
            assert whole in (200, 400)

    asyncio.run(judge())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 1100, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4100, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4100 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 20 + b"\r\n", 431),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
    ],
    ids=[
        "PA23-long-line", "PA23-long-head", "PA23-long-whole-head", "PA23-many-fields", "PA10-bare-line-feeds",
        "PA10-last-bare", "PA20-version-2", "PA06-chunk", "PA01-two-framings", "long-body", "CF20-expectation",
    ],
)  # fmt: skip
async def test_a_refused_request_gets_one_reply_and_ends_the_connection(sent: bytes, status: int) -> None:
    async with Front(echo) as front:
        client = await front.connect()
        reply = await client.ask(sent)
        assert (reply.status, reply.fields["connection"]) == (status, "close")
        assert reply.fields["x-request-id"] == json.loads(reply.body)["error"]["request_id"] == "new-1"
        assert await client.rest() == b""
        assert await reports_statuses(front, 1) == [status]


async def test_bytes_after_a_complete_request_belong_to_the_next_one() -> None:
    async with Front(echo) as front:  # CF17
        client = await front.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhigarbage\r\n\r\n")
        assert (await client.reply()).body == b"POST / hi"
        assert (await client.reply()).status == 400
        assert await client.rest() == b""


async def test_a_client_that_expects_100_continue_gets_it() -> None:
    async with Front(echo) as front:  # CF19
        client = await front.connect()
        ask = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        client.send(ask)
        assert (await client.head())[0] == 100
        assert (await client.ask(b"hello")).body == b"POST / hello"
        assert (await client.ask(ask + b"hello")).body == b"POST / hello"  # the client did not wait for 100
        chunked = ask.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")
        assert (await client.ask(chunked + b"5\r\nhello\r\n0\r\n\r\n")).body == b"POST / hello"
        assert (await client.ask(ask.replace(b"5", b"0"))).body == b"POST / "
        old = await client.ask(ask.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
        assert (old.status, old.body) == (200, b"POST / hello")


async def test_a_client_that_expects_100_continue_for_too_long_a_body_is_refused() -> None:
    async with Front(echo) as front:
        client = await front.connect()
        sent = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n"
        assert (await client.ask(sent)).status == 413


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 900000", b"Transfer-Encoding: chunked"], ids=["length", "chunked"]
)
async def test_a_refusal_reaches_a_client_that_is_still_sending(framing: bytes) -> None:
    async with Front(echo) as front:  # CF21
        client = await front.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        for _ in range(9):
            client.send(b"%x\r\n%b\r\n" % (100_000, bytes(100_000)))
        await client.sent()
        assert (await client.reply()).status == 413
        assert await client.rest() == b""
        client.leave()
        await until(lambda: not front.connections)


async def test_reading_stops_soon_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_engine_proxy_server.wire.client_connection._LINGER_SECONDS", 0.05)
    async with Front(echo) as front:
        client = await front.connect()
        assert (await client.ask(b"nonsense\r\n\r\n")).status == 400
        client.send(b"more")
        await until(lambda: not front.connections)  # although the client stays


async def test_an_incomplete_request_is_refused_after_its_deadline() -> None:
    for part in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"):
        async with Front(echo) as front:  # CF16
            client = await front.connect()
            client.send(part)
            client.half_close()
            reply = await client.reply()
            assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "incomplete_request")
            await until(lambda: not front.connections)
            assert await reports_statuses(front, 1) == [400]


async def drip(client: Client, block: bytes, front: Front) -> Reply:
    """Send ``block`` repeatedly, byte by byte, until there is a reply."""

    async def send() -> None:
        while not front.observed:
            client.send(block)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as sender:
        sender.create_task(send())
        return await client.reply()


async def test_a_head_sent_byte_by_byte_has_an_absolute_deadline() -> None:
    async with Front(echo, replace(LIMITS, header_seconds=0.2)) as front:  # CF12
        client = await front.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        reply = await drip(client, b"a", front)
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (408, "request_timeout")
        assert await client.rest() == b""


async def test_line_breaks_before_a_request_do_not_extend_its_deadline() -> None:
    async with Front(echo, replace(LIMITS, header_seconds=0.2)) as front:
        client = await front.connect()
        async with asyncio.TaskGroup() as sender:
            dripping = sender.create_task(drip_line_breaks(client))
            await until(lambda: front.connections)
            await until(lambda: not front.connections)
            dripping.cancel()


async def drip_line_breaks(client: Client) -> None:
    while True:
        for byte in (b"\r", b"\n"):
            client.send(byte)
            await asyncio.sleep(0.02)  # slow on purpose


async def test_the_refusal_of_a_body_has_the_requests_id() -> None:
    async with Front(echo) as front:
        client = await front.connect()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n"
        reply = await client.ask(head + b"zz\r\n")
        assert (reply.status, reply.fields["x-request-id"]) == (400, "mine")


async def test_a_body_that_stalls_is_late() -> None:
    async with Front(echo, replace(LIMITS, body_seconds=0.2)) as front:  # CF13
        client = await front.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        assert (await client.reply()).status == 408


async def test_a_slow_body_is_not_late() -> None:
    async with Front(echo, replace(LIMITS, body_seconds=0.4, header_seconds=0.1)) as front:
        client = await front.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n")
        for _ in range(30):
            client.send(b"a")
            await asyncio.sleep(0.02)  # slow on purpose
        assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    ("framing", "piece"), [(b"Content-Length: 9000", b"a"), (b"Transfer-Encoding: chunked", b"1\r\na\r\n")]
)
async def test_a_whole_body_has_a_deadline_however_steadily_it_arrives(framing: bytes, piece: bytes) -> None:
    async with Front(echo, replace(LIMITS, body_total_seconds=0.2)) as front:  # CF13
        client = await front.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        reply = await drip(client, piece, front)
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (408, "request_timeout")
        assert await client.rest() == b""


@pytest.mark.parametrize("first", [b"", GET], ids=["before-the-first-request", "after-one"])
async def test_an_idle_connection_is_closed(first: bytes) -> None:
    async with Front(echo, replace(LIMITS, keep_alive_seconds=0.1)) as front:
        client = await front.connect()
        if first:
            assert (await client.ask(first)).status == 200
        assert await client.rest() == b""
        await until(lambda: not front.connections)
        assert len(front.observed) == bool(first)


async def test_a_connection_with_a_request_in_progress_is_not_idle() -> None:
    async def waits_longer(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await echo(exchange)

    limits = replace(LIMITS, keep_alive_seconds=0.1, header_seconds=0.1, body_seconds=0.1)
    async with Front(waits_longer, limits) as front:
        client = await front.connect()
        assert (await client.ask(GET)).status == 200


async def test_pipelined_bytes_are_read_up_to_a_limit() -> None:
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await release.wait()
        await echo(exchange)

    async with Front(waits) as front:
        client = await front.connect()
        client.send(GET * (20_000_000 // len(GET)))
        await until(lambda: front.tasks)
        connection = next(iter(front.connections))
        await until(lambda: len(connection._ahead) > LIMITS.head.total_bytes)  # noqa: SLF001
        release.set()
        for _ in range(200):  # each answered request makes room only for itself
            assert (await client.reply()).status == 200
            assert len(connection._ahead) < 600_000  # noqa: SLF001 - two reads by the event loop


async def test_reading_resumes_when_pipelined_requests_have_been_answered() -> None:
    async with Front(echo) as front:
        client = await front.connect()
        request = GET.replace(b"Host", b"X: " + b"a" * 3000 + b"\r\nHost")
        client.send(request * 300)
        for _ in range(300):
            assert (await client.reply()).status == 200
        assert (await client.ask(GET)).status == 200


async def test_any_number_of_pipelined_requests_is_answered_without_delaying_other_clients() -> None:
    order: list[bytes] = []

    async def notes(exchange: Exchange) -> None:
        order.append(exchange.head.target)
        await echo(exchange)

    async with Front(notes) as front:
        eager, other = await front.connect(), await front.connect()
        eager.send(GET.replace(b"/", b"/eager", 1) * 3000)
        await until(lambda: order)
        other.send(GET.replace(b"/", b"/other", 1))
        for _ in range(3000):
            assert (await eager.reply()).status == 200
        assert (await other.reply()).status == 200

    assert order.index(b"/other") < 2900
