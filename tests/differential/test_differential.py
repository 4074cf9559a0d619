"""The same bytes through one proxy per backend: no backend may see a request that the proxy did not forward."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corpus.notation import bad_requests, odd_requests, settings
from differential.observed import Backend, Observed
from differential.programs import haproxy_backend, nginx_backend, recorder_backend
from differential.python_servers import (
    aiohttp_backend,
    h11_backend,
    uvicorn_h11_backend,
    uvicorn_httptools_backend,
)
from support.fakes.front import until
from support.live_proxy import Proxy, live_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"  # ends every connection
_PATIENCE_SECONDS = 0.1  # client timeout of the proxies for incomplete messages
_END_SECONDS = 20.0
_MUTATIONS = 400
_NUMBERS = itertools.count(1)
_STATE_TARGETS = (b"/health", b"/v1/models", b"/metrics")


@dataclass(frozen=True, slots=True)
class Side:
    """One backend with the proxy in front of it.

    Attributes:
        log: the proxy's access log.
    """

    backend: Backend
    proxy: Proxy
    log: io.StringIO

    async def send(self, message: bytes) -> list[Observed]:
        """The requests that the backend understood from ``message``."""
        before = len(self._observed())
        reader, writer = await self.proxy.connect()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(_END_SECONDS):
                writer.write(message + _LAST)
                await reader.read()
        writer.close()
        await self._mark()
        return self._observed()[before:]

    async def _mark(self) -> None:
        """Send one more request and wait for it; all earlier ones have then been recorded too."""
        marker = f"/marker/{next(_NUMBERS)}"
        async with asyncio.timeout(_END_SECONDS):
            while (await self.proxy.http.get(marker)).status_code == 503:  # noqa: ASYNC110 - no event for tests
                await asyncio.sleep(0.01)  # the backend broke a connection and is being polled
        await until(lambda: any(one.target == marker.encode() for one in self.backend.observed()[-50:]))

    def _observed(self) -> list[Observed]:
        return [
            one
            for one in self.backend.observed()
            if not one.target.startswith(b"/marker/") and one.target not in _STATE_TARGETS
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Side]]:
    """All backends, with the recorder first."""
    starting = [
        recorder_backend(), h11_backend(), uvicorn_h11_backend(), uvicorn_httptools_backend(), aiohttp_backend(),
        nginx_backend(tmp_path_factory.mktemp("nginx")), haproxy_backend(tmp_path_factory.mktemp("haproxy")),
    ]  # fmt: skip
    limits = settings() | {
        "client_header_timeout_seconds": _PATIENCE_SECONDS,
        "client_body_timeout_seconds": _PATIENCE_SECONDS,
        "log_format": "json",
    }
    async with AsyncExitStack() as stack:
        found = []
        for one in starting:
            backend = await stack.enter_async_context(one)
            log = io.StringIO()
            with contextlib.redirect_stdout(log):  # the access log keeps the standard output that it finds at the start
                proxy = await stack.enter_async_context(live_proxy(backend.url, **limits))
            found.append(Side(backend, proxy, log))
        yield found


async def check(sides: list[Side], message: bytes) -> None:
    """Check that every backend sees the same requests as the recorder."""
    forwarded, *observed = await asyncio.gather(*(side.send(message) for side in sides))
    for side, seen in zip(sides[1:], observed, strict=True):
        more = Counter(one for one in seen if one.method) - Counter(forwarded)
        assert not more, f"{side.backend.name} saw {more} in {message!r}, but {forwarded} was forwarded"
        assert len(seen) <= len(forwarded), f"{side.backend.name} saw {seen} in {message!r}"


MESSAGES = {entry.name: entry.send for entry in bad_requests()} | {
    f"odd-{entry.name}": entry.send + entry.later for entry in odd_requests()
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_backend_sees_exactly_the_forwarded_request(sides: list[Side], message: bytes) -> None:
    await check(sides, message)


_FRAGMENTS = st.sampled_from([
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b" ", b"\t", b"\x0b", b":", b",", b";", b"0", b"5", b"\xff",
    b"HTTP/1.0", b"HTTP/1.1", b"0\r\n\r\n", b"5\r\nhello\r\n", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"Connection: close\r\n", b"Connection: content-length, transfer-encoding\r\n",
    b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n",
])  # fmt: skip
_SHORT = [message for message in MESSAGES.values() if len(message) < 1000]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of the corpus with parts removed, doubled, replaced, or inserted from another message."""
    message = draw(st.sampled_from(_SHORT))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(message)))
        end = min(len(message), start + draw(st.integers(0, 12)))
        replacement = draw(st.one_of(_FRAGMENTS, st.just(b""), st.just(message[start:end] * 2), st.binary(max_size=3)))
        message = message[:start] + replacement + message[end:]
    if draw(st.booleans()):
        message += draw(st.sampled_from(_SHORT))
    return message


@given(message=mutated())
@hypothesis_settings(
    max_examples=_MUTATIONS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
async def test_backend_sees_exactly_the_forwarded_mutated_request(sides: list[Side], message: bytes) -> None:
    await check(sides, message)


async def test_backends_have_seen_no_more_requests_than_the_access_log_has(sides: list[Side]) -> None:
    """Runs after the tests above. It stops the proxies, because only then the log is complete."""
    for side in sides:
        await side.proxy.stop()
        lines = map(json.loads, side.log.getvalue().splitlines())
        forwarded = sum(line["backend"] is not None for line in lines)
        seen = [one for one in side.backend.observed() if one.target not in _STATE_TARGETS]
        assert forwarded > 0
        assert len(seen) <= forwarded, side.backend.name
