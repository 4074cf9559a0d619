"""Limits on connections, requests and body bytes: what is refused, and when the load is released."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.wire.exchange import Exchange
from support.fakes.front import Client, Front, Reply, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BEGUN = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + bytes(400)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def sends_hello(exchange: Exchange) -> None:
    exchange.respond(200, b"", b"hello")


class Gate:
    """A handler that answers once opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.opened.wait()
        await sends_hello(exchange)


async def fails(_: Exchange) -> None:
    raise ProxyError("It failed.")


def is_refusal(reply: Reply) -> bool:
    return (reply.status, reply.fields["retry-after"]) == (503, "1") and b'"code": "overloaded"' in reply.body


async def test_a_request_beyond_the_limit_is_refused_before_its_body_is_read() -> None:
    gate = Gate()
    async with Front(gate) as front:
        front.load.most_requests = 1
        served, refused = await front.connect(), await front.connect()
        served.send(GET)
        await until(lambda: front.load.requests == 1)

        reply = await refused.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n")
        assert is_refusal(reply)
        assert reply.fields["connection"] == "close"
        assert await refused.rest() == b""

        gate.opened.set()
        assert (await served.reply()).status == 200
        assert front.load.requests == 0


async def test_a_refused_complete_request_leaves_its_connection_open() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        front.load.most_requests = 0
        for _ in range(3):
            reply = await client.ask(GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"))
            assert is_refusal(reply)
            assert "connection" not in reply.fields
        front.load.most_requests = 1
        assert (await client.ask(GET)).status == 200


async def test_pipelined_requests_beyond_the_limit_are_refused_with_their_connection() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        front.load.most_requests = 0
        reply = await client.ask(GET * 5000)
        assert is_refusal(reply)
        assert await client.rest() == b""


async def test_own_paths_are_served_beyond_the_limit() -> None:
    async with Front(sends_hello) as front:
        front.load.most_requests = 0
        client = await front.connect()
        assert (await client.ask(GET.replace(b"/ ", b"/health "))).status == 200


async def test_replies_close_their_connections_while_the_load_requires_it() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        assert "connection" not in (await client.ask(GET)).fields
        front.load.ends_connections = True
        assert (await client.ask(GET)).fields["connection"] == "close"
        assert await client.rest() == b""


@pytest.mark.parametrize("handle", [sends_hello, fails])
@pytest.mark.parametrize("request_bytes", [BEGUN + bytes(600), CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"])
async def test_a_requests_load_is_released_with_its_reply(handle: Callable, request_bytes: bytes) -> None:  # type: ignore[type-arg]
    async with Front(handle) as front:
        client = await front.connect()
        for split in (len(request_bytes), 60, 100):
            client.send(request_bytes[:split])
            await asyncio.sleep(0.01)
            client.send(request_bytes[split:])
            await client.reply()
            assert (front.load.requests, front.load.body_bytes) == (0, 0)


@pytest.mark.parametrize("sent", [BEGUN, BEGUN + bytes(600), CHUNKED + b"190\r\n" + bytes(400)])
async def test_a_requests_load_is_released_when_its_client_leaves(sent: bytes) -> None:
    async with Front(Gate()) as front:
        client = await front.connect()
        client.send(sent)
        await until(lambda: front.load.body_bytes in (400, 1000))
        client.reset()
        await until(lambda: not front.connections)
        assert (front.load.requests, front.load.body_bytes) == (0, 0)


async def test_the_load_of_a_malformed_body_is_released() -> None:
    async with Front(sends_hello) as front:
        client = await front.connect()
        client.send(CHUNKED + b"190\r\n" + bytes(400) + b"\r\n")
        await until(lambda: front.load.body_bytes == 400)
        assert (await client.ask(b"nonsense\r\n")).status == 400
        assert front.load.body_bytes == 0


@pytest.mark.parametrize("sent", [BEGUN, BEGUN + bytes(600), CHUNKED + b"3e8\r\n" + bytes(1000)])
async def test_a_body_beyond_the_byte_limit_is_refused(sent: bytes) -> None:
    gate = Gate()
    async with Front(gate) as front:
        front.load.most_body_bytes = 1500
        served, refused = await front.connect(), await front.connect()
        served.send(BEGUN + bytes(600))
        await until(lambda: front.load.body_bytes == 1000)

        assert is_refusal(await refused.ask(sent))

        assert front.load.body_bytes == 1000
        gate.opened.set()
        assert (await served.reply()).status == 200


async def test_a_chunked_body_is_refused_once_it_exceeds_the_byte_limit() -> None:
    async with Front(sends_hello) as front:
        front.load.most_body_bytes = 1000
        client = await front.connect()
        client.send(CHUNKED + b"320\r\n" + bytes(800) + b"\r\n")
        await until(lambda: front.load.body_bytes == 800)
        assert is_refusal(await client.ask(b"320\r\n" + bytes(800) + b"\r\n"))
        assert front.load.body_bytes == 0


async def test_announced_bodies_count_only_as_they_arrive() -> None:
    async with Front(sends_hello) as front:
        front.load.most_body_bytes = 1500
        for _ in range(5):
            (await front.connect()).send(BEGUN[:-399])
        await until(lambda: front.load.body_bytes == 5)
        assert (await (await front.connect()).ask(BEGUN + bytes(600))).status == 200


async def connected(front: Front, count: int) -> list[Client]:
    """Clients whose connections are idle, the longest idle one first."""
    clients = []
    for number in range(1, count + 1):
        clients.append(await front.connect())
        await clients[-1].ask(GET)
        assert len(front.load.connections) == number
    return clients


async def test_the_longest_idle_connection_is_closed_for_a_new_one() -> None:
    async with Front(sends_hello) as front:
        front.load.most_connections = 3
        first, second, third = await connected(front, 3)
        await first.ask(GET)

        new = await front.connect()

        assert (await new.ask(GET)).status == 200
        assert await second.rest() == b""
        for client in (first, third):
            assert (await client.ask(GET)).status == 200
        assert len(front.connections) == 3


async def test_a_burst_of_new_connections_closes_as_many_idle_ones() -> None:
    async with Front(sends_hello) as front:
        front.load.most_connections = 20
        await connected(front, 20)
        burst = await asyncio.gather(*(front.connect() for _ in range(20)))
        for client in burst:
            assert (await client.ask(GET)).status == 200
        assert len(front.load.connections) == 20


@pytest.mark.parametrize("sent", [GET, GET[:10], BEGUN], ids=["being-served", "head-begun", "body-begun"])
async def test_a_new_connection_is_refused_if_all_connections_are_in_use(sent: bytes) -> None:
    gate = Gate()
    async with Front(gate) as front:
        front.load.most_connections = 1
        busy = await front.connect()
        busy.send(sent)
        await until(lambda: [not one.is_idle for one in front.connections] == [True])

        new = await front.connect()

        reply = await new.ask(GET)
        assert is_refusal(reply)
        assert reply.fields["connection"] == "close"
        assert await new.rest() == b""
        if sent == GET:
            gate.opened.set()
            assert (await busy.reply()).status == 200


async def test_a_closed_connection_makes_room_for_a_new_one() -> None:
    async with Front(Gate()) as front:
        front.load.most_connections = 1
        busy = await front.connect()
        busy.send(GET)
        await until(lambda: front.load.requests)
        busy.reset()
        await until(lambda: not front.connections)
        (await front.connect()).send(GET)
        await until(lambda: front.load.requests)


async def test_a_flood_of_rejected_connections_gets_no_replies() -> None:
    async with Front(Gate()) as front:
        front.load.most_connections = 1
        (await front.connect()).send(GET)
        await until(lambda: front.load.requests)
        for _ in range(30):
            await front.connect()
        await until(lambda: len(front.observed) == 8)
        await until(lambda: len(front.connections) <= 9)  # the others have been dropped
