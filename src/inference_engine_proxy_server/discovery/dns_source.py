"""A DNS name as a source of backends: it is looked up again whenever its answer has expired."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.discovery.dns_backends import backends_of
from inference_engine_proxy_server.discovery.dns_records import DnsAnswer, DnsFailure, DnsRecord, NothingFound, look_up
from inference_engine_proxy_server.discovery.source import SourceReport

__all__ = ["DnsSource"]

_LEAST_SECONDS = 1.0  # between two lookups; Consul's answers have a TTL of 0 by default
_MOST_SECONDS = 30.0  # Docker's answers have a TTL of 600 s, but a container that was added is wanted sooner
_JITTER = 0.1  # of the interval, so that workers and replicas do not ask at the same moment
_FIRST_RETRY_SECONDS = 1.0  # after a failure; each further one doubles it, up to the longest interval
_EMPTY_SECONDS = 60.0  # for which answers without records are not believed


@dataclass(slots=True)
class _Trouble:
    """Consecutive lookups without records.

    Attributes:
        count: of all of them.
        empty_since: when answers that there are no records began; ``None`` if the last lookup had no answer.
    """

    count: int = 0
    empty_since: float | None = None


class DnsSource:
    """One DNS name.

    Args:
        entry: its URL, and what is true of every backend.
        ask: asks the DNS.
        clock: a monotonic clock, in seconds.

    Attributes:
        name: its URL.
    """

    def __init__(
        self,
        entry: BackendConfig,
        ask: Callable[[Lookup], Awaitable[DnsAnswer]] = look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = entry.url
        self._entry = entry
        self._lookup = Lookup.of(entry.url)
        self._ask = ask
        self._clock = clock
        self._records: tuple[DnsRecord, ...] = ()
        self._backends: Sequence[BackendConfig] = ()
        self._trouble = _Trouble()
        self._report: SourceReport | None = None

    def __repr__(self) -> str:
        return f"<DnsSource {self.name} of {len(self._records)} records>"

    def configure(self, entry: BackendConfig) -> None:
        """Apply other options to all backends of the name; its URL must be the same."""
        if entry == self._entry:
            return
        self._entry = entry
        self._backends = backends_of(self._lookup, entry, self._records)
        if self._report is not None and self._backends:
            self._report.found(self._backends)

    async def run(self, report: SourceReport) -> None:
        """See :class:`~.source.Source`."""
        while True:
            seconds = await self.refresh(report)
            await asyncio.sleep(seconds * random.uniform(1.0, 1.0 + _JITTER))

    async def refresh(self, report: SourceReport) -> float:
        """Look the name up once; returns the seconds until the next lookup."""
        self._report = report
        try:
            answer = await self._ask(self._lookup)
        except DnsFailure as error:
            self._trouble = _Trouble(self._trouble.count + 1)
            report.failed(str(error))
        except NothingFound as error:
            self._on_nothing(report, str(error))
        else:
            self._trouble = _Trouble()
            if answer.records != self._records:  # usually they have not changed
                self._records = answer.records
                self._backends = backends_of(self._lookup, self._entry, answer.records)
            report.found(self._backends)
            return min(max(answer.ttl_seconds, _LEAST_SECONDS), _MOST_SECONDS)
        return min(_FIRST_RETRY_SECONDS * 2.0 ** min(self._trouble.count - 1, 10), _MOST_SECONDS)

    def _on_nothing(self, report: SourceReport, reason: str) -> None:
        """A name server that restarts, or has lost its data, also says that there is nothing."""
        now, since = self._clock(), self._trouble.empty_since
        self._trouble = _Trouble(self._trouble.count + 1, now if since is None else since)
        is_believed = since is not None and now - since >= _EMPTY_SECONDS
        if is_believed:
            self._records, self._backends = (), ()
        report.failed(reason, backends_leave=is_believed)
