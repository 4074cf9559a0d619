"""Requests of ``requests.yaml``, sent to a listening proxy whole and in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from corpus.conftest import RunningProxy
from corpus.notation import BadRequest, OddRequest, Seen, bad_requests, odd_requests
from support.fakes.front import Client

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SPLITS = ("whole", "halves", "pieces")
_PIECES = 800  # maximum; a shorter message is sent byte by byte
_HOP_BY_HOP = {
    "connection", "expect", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade",
}  # fmt: skip
_OWN_LINES = ("host", "content-length", "x-request-id")
_GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"


def pieces(message: bytes, split: str) -> Iterable[bytes]:
    """The pieces in which ``message`` is sent."""
    size = {"whole": len(message), "halves": -(-len(message) // 2), "pieces": -(-len(message) // _PIECES)}[split]
    return (message[start : start + size] for start in range(0, len(message), size))


async def send(client: Client, message: bytes, split: str) -> None:
    """Send ``message`` so that the proxy reads one piece at a time."""
    for piece in pieces(message, split):
        client.send(piece)
        await client.sent()
        await asyncio.sleep(0)  # the proxy runs in this event loop and reads the piece now
        await asyncio.sleep(0)


async def final_status(client: Client, method: str = "POST", *, after_interim: bool = False) -> int:
    """Read one reply; returns its status."""
    status, _, fields = await client.head()
    if status == 100 and after_interim:
        status, _, fields = await client.head()
    if method != "HEAD":
        await client.read(int(fields["content-length"]))
    return status


BAD = [
    pytest.param(entry, split, id=f"{entry.name}-{split}")
    for entry in bad_requests()
    for split in _SPLITS[: 1 if entry.waits else None]
]


@pytest.mark.parametrize(("entry", "split"), BAD)
async def test_malformed_request_is_refused_and_reaches_no_engine(
    watched: RunningProxy, impatient: RunningProxy, entry: BadRequest, split: str
) -> None:
    target = impatient if entry.waits else watched
    before = len(target.engine.passed_on)
    client = await target.connect()
    await send(client, entry.send, split)
    if entry.ends:
        client.half_close()
    assert [await final_status(client) for _ in range(entry.served_first)] == [200] * entry.served_first
    assert await final_status(client, after_interim=entry.interim) in entry.statuses
    if entry.stays_open:
        client.send(_GOOD)
        assert await final_status(client) == 200
    else:
        assert await client.rest() == b""
    client.leave()
    assert await target.is_well(f"/after/{entry.name}")
    assert len(target.engine.passed_on) - before == entry.served_first + entry.stays_open + 1
    assert target.engine.is_in_step


ODD = [
    pytest.param(entry, split, id=f"{entry.name}-{split}")
    for entry in odd_requests()
    for split in _SPLITS[: 1 if entry.at_once else None]
]


@pytest.mark.parametrize(("entry", "split"), ODD)
async def test_unusual_request_is_forwarded_with_its_meaning(
    watched: RunningProxy, entry: OddRequest, split: str
) -> None:
    before = len(watched.engine.passed_on)
    client = await watched.connect()
    await send(client, entry.send, split)
    if entry.later:
        assert (await client.head())[0] == 100
        await send(client, entry.later, split)
    assert [await final_status(client, seen.method) for seen in entry.sees] == [200] * len(entry.sees)
    if entry.closes:
        assert await client.rest() == b""
    else:
        client.send(_GOOD)
        assert await final_status(client) == 200
    client.leave()
    assert await watched.is_well(f"/after/{entry.name}")
    passed_on = watched.engine.passed_on[before:]
    assert len(passed_on) == len(entry.sees) + (not entry.closes) + 1
    for request, seen in zip(passed_on, entry.sees, strict=False):
        check_forwarded(request, seen, authority=watched.engine.url.removeprefix("http://"))
    assert watched.engine.is_in_step


def check_forwarded(request: bytes, seen: Seen, authority: str) -> None:
    """Check that ``request`` is unambiguous for the engine and as expected."""
    section, body = request.split(b"\r\n\r\n", 1)
    first, *lines = section.split(b"\r\n")
    assert first == b"%b %b HTTP/1.1" % (seen.method.encode(), seen.target)
    assert body == seen.body
    fields = [(name.decode().lower(), value.strip()) for name, value in (line.split(b":", 1) for line in lines)]
    names = {name for name, _ in fields}
    assert not names & _HOP_BY_HOP
    assert not names & set(seen.absent)
    assert set(seen.fields) <= set(lines)
    own = {name: [value for other, value in fields if other == name] for name in _OWN_LINES}
    assert own["host"] == [authority.encode()]
    assert own["content-length"] in ([[b"%d" % len(body)]] if body else [[], [b"0"]])
    assert len(own["x-request-id"]) == 1
    assert not seen.never or seen.never not in section


async def test_corpus_is_complete() -> None:
    """Protects against losing entries unnoticed by a mistake in the file."""
    assert len(bad_requests()) > 450
    assert len(odd_requests()) > 90
