"""Attacks on the protocol are refused, logged and counted, and reach no engine.

The messages are in ``tests/corpus/requests.yaml``, where the reason of each names its case.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest

from corpus.notation import BadRequest, bad_requests, odd_requests, settings
from faults.conftest import CHAT
from support.engine import answers_with
from support.fakes.engine import FakeEngine, answering, http_reply
from support.fakes.front import Client
from support.fleet import Fleet
from support.live_proxy import Proxy as LiveProxy
from support.waiting import eventually

REFUSED = (
    "PA01", "PA02", "PA04", "PA05", "PA06", "PA08", "PA10", "PA11", "PA12", "PA13", "PA14", "PA16", "PA18", "PA20",
    "PA21", "PA22", "PA23", "PA25", "PA30",
)  # fmt: skip
PASSED_ON = ("PA16", "PA17", "PA18", "PA21", "PA22", "PA25")
SECRET = "s" * 32


async def connect(proxy: LiveProxy) -> Client:
    return Client(*await proxy.connect())


async def attack(proxy: LiveProxy, entry: BadRequest) -> list[bytes]:
    """Send a message of the corpus; returns the status of each reply until the connection ends."""
    client = await connect(proxy)
    client.send(entry.send)
    if entry.ends:
        client.half_close()
    received = await client.rest()
    client.leave()
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", received)


@pytest.mark.parametrize("case", REFUSED)
async def test_pa01_to_pa30_attack_is_refused_logged_and_counted_once(fleet: Fleet, case: str) -> None:
    """The fixture counts the lines of the access log and checks that nothing is left."""
    entries = [entry for entry in bad_requests() if case in entry.cases and not entry.stays_open]
    assert entries
    engine = await fleet.engine(owner="vllm")
    proxy = await fleet.proxy(engine, **settings())
    await proxy.becomes(engine, "up")  # all paths have been polled by then
    connections = len(engine.connections)
    served, refused = 0, Counter[int]()

    for entry in entries:
        statuses = [int(status) for status in await attack(proxy, entry)]
        assert statuses[:-1] == [200] * entry.served_first, entry.name
        assert statuses[-1] in entry.statuses, entry.name
        served += entry.served_first
        refused[statuses[-1]] += 1

    assert len(engine.served) == served
    if not served:
        assert len(engine.connections) == connections
    for status, count in refused.items():
        assert await proxy.metric("requests_total", code=str(status)) == count
    assert (await proxy.post()).status == 200
    assert await proxy.state(engine) == "up"


@pytest.mark.parametrize("case", PASSED_ON)
def test_pa16_to_pa25_valid_variants_are_in_the_corpus_of_forwarded_requests(case: str) -> None:
    assert any(case in entry.cases for entry in odd_requests())


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_pa16_host_of_an_absolute_target_is_never_connected_to(fleet: Fleet, scheme: str) -> None:
    engine = await fleet.engine(answers_with(http_reply()))
    proxy = await fleet.proxy(engine)
    async with FakeEngine(answering(http_reply(b"secret"))) as internal:
        client = await connect(proxy)
        target = f"{scheme}://127.0.0.1:{internal.port}/latest/meta-data"
        reply = await client.ask(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{internal.port}\r\n\r\n".encode())
        client.leave()
        assert (reply.status, reply.fields["x-backend"], reply.body) == (200, engine.url, b"hello")
        assert not internal.connections
    assert engine.served[0].startswith(b"GET /latest/meta-data HTTP/1.1\r\n")


@pytest.mark.parametrize("named", ["Authorization", "authorization, x-request-id, Host", "X-Api-Key"])
async def test_pa21_key_named_in_connection_does_not_change_the_key_check(fleet: Fleet, named: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, api_keys=f"me:{SECRET}", forward_client_key=True)
    statuses = []
    for secret in (SECRET, "wrong"):
        client = await connect(proxy)
        key = f"Authorization: Bearer {secret}\r\nX-Request-Id: mine\r\n"
        section = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\n{key}Connection: {named}\r\nContent-Length: 2\r\n\r\n{{}}"
        statuses.append((await client.ask(section.encode())).status)
        client.leave()
    assert statuses == [200, 401]
    [request] = engine.served
    assert b"\r\nx-request-id: mine\r\n" in request
    assert request.lower().count(b"\r\nhost: ") == 1
    assert (SECRET.encode() in request) == (named == "X-Api-Key")


async def test_pa25_forged_forwarding_header_reaches_no_log_and_no_engine(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    client = await connect(proxy)
    way = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n"
    forged = f'X-Request-Id: a" 200 complete\r\n{way}'
    reply = await client.ask(f"GET /x HTTP/1.1\r\nHost: a\r\n{forged}\r\n".encode())
    client.leave()
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", reply.fields["x-request-id"])
    assert b"6.6.6.6" not in engine.served[0]
    await eventually(lambda: reply.fields["x-request-id"] in fleet.access_log.getvalue())
    assert "6.6.6.6" not in fleet.access_log.getvalue()
    assert '" 200 complete\n' not in fleet.access_log.getvalue()


@pytest.mark.slow_faults
async def test_pa27_repeated_attacks_delay_no_other_client(fleet: Fleet) -> None:
    entries = [entry for entry in bad_requests() if not (entry.waits or entry.stays_open or entry.interim)]
    engine = await fleet.engine(owner="vllm")
    proxy = await fleet.proxy(engine, **settings(), max_allowed_request_queue=10_000)

    async def attack_again_and_again(mine: list[BadRequest]) -> None:
        for _ in range(20):
            for entry in mine:
                statuses = await attack(proxy, entry)
                assert int(statuses[-1]) in entry.statuses, entry.name

    async with asyncio.TaskGroup() as group:
        attackers = [group.create_task(attack_again_and_again(entries[start::20])) for start in range(20)]
        while not all(attacker.done() for attacker in attackers):
            async with asyncio.timeout(5):
                assert (await proxy.post()).status == 200
            await asyncio.sleep(0.01)
    assert await proxy.metric("requests_total", code="500") == 0
