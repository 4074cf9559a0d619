"""Engines and proxies of one test, in its own process."""

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
    """Starts engines and proxies for one test; all of them end with ``stack``.

    Attributes:
        engines: all that it has started.
        keeps_access_log: the proxies write their access logs to ``access_log``, and not to standard output.
        last_proxy: the proxy that was started last.
    """

    stack: AsyncExitStack
    engines: list[Engine] = field(default_factory=list)
    keeps_access_log: bool = False
    access_log: io.StringIO = field(default_factory=io.StringIO)
    last_proxy: Proxy | None = None

    async def engine(self, answer: Answer | None = None, **script: Any) -> Engine:
        """An engine that answers clients' requests by ``answer``; ``script`` as for :class:`Engine`."""
        return await self.add(Engine(answer, **script))

    async def add(self, engine: E) -> E:
        """Let ``engine`` be one of them."""
        self.engines.append(engine)
        await self.stack.enter_async_context(engine)
        return engine

    async def proxy(self, *backends: Addressed | str, **settings: Any) -> Proxy:
        """The proxy, as :func:`live_proxy`; what comes back need not start slowly."""
        urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
        settings = {"slow_start_seconds": 0, "access_log_probes": True} | settings
        output = contextlib.redirect_stdout(self.access_log) if self.keeps_access_log else contextlib.nullcontext()
        with output:  # as long as it starts: it keeps what it finds then
            self.last_proxy = await self.stack.enter_async_context(live_proxy(*urls, **settings))
        return self.last_proxy

    async def nothing_is_left(self) -> None:
        """Every gauge is at 0, every request has one line in the access log, and engines see all connections end."""
        if self.last_proxy is None:
            return
        await eventually(self.last_proxy.is_at_rest)
        requests = await self.last_proxy.metric("requests_total")
        await self.last_proxy.stop()
        assert self.access_log.getvalue().count("\n") == requests + 1  # the look at the metrics itself
        await eventually(lambda: not sum(engine.open_requests for engine in self.engines))
