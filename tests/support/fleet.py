"""Engines and proxies of one test, in the test process."""

from __future__ import annotations

import contextlib
import io
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from support.engine import Answer, Engine
from support.live_proxy import Proxy, live_proxy
from support.running_proxy import Addressed
from support.waiting import eventually

__all__ = ["Fleet"]

E = TypeVar("E", bound=Engine)


@dataclass
class Fleet:
    """Starts engines and proxies for one test; all end with ``stack``.

    Attributes:
        engines: all started engines.
        keeps_access_log: whether proxies write their access logs to ``access_log`` instead of standard output.
        last_proxy: the most recently started proxy.
    """

    stack: AsyncExitStack
    engines: list[Engine] = field(default_factory=list)
    keeps_access_log: bool = False
    access_log: io.StringIO = field(default_factory=io.StringIO)
    last_proxy: Proxy | None = None

    async def engine(self, answer: Answer | None = None, **script: Any) -> Engine:
        """Start an engine that answers clients' requests with ``answer``; ``script`` as for :class:`Engine`."""
        return await self.add(Engine(answer, **script))

    async def add(self, engine: E) -> E:
        """Start ``engine``."""
        self.engines.append(engine)
        await self.stack.enter_async_context(engine)
        return engine

    async def proxy(self, *backends: Addressed | str, **settings: Any) -> Proxy:
        """Start a proxy, as :func:`live_proxy` does, but without slow starts of backends."""
        urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
        settings = {"slow_start_seconds": 0, "access_log_probes": True} | settings
        output = contextlib.redirect_stdout(self.access_log) if self.keeps_access_log else contextlib.nullcontext()
        with output:  # only during its start: it keeps the stream that it finds then
            self.last_proxy = await self.stack.enter_async_context(live_proxy(*urls, **settings))
        return self.last_proxy

    async def nothing_is_left(self) -> None:
        """Check that all gauges are 0, each request has one log line, and all connections to engines have ended."""
        if self.last_proxy is None:
            return
        await eventually(self.last_proxy.is_at_rest)
        requests = await self.last_proxy.metric("requests_total")
        await self.last_proxy.stop()
        assert self.access_log.getvalue().count("\n") == requests + 1  # plus the request for /metrics itself
        await eventually(lambda: not sum(engine.open_requests for engine in self.engines))
