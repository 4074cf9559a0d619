"""The services of one type in the local network as a source of backends (RFC 6762 and RFC 6763).

The package zeroconf is imported only when such a source runs. It repeats its questions, and notices both goodbyes and
records that have expired.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from inference_engine_proxy_server.config.added_backends import DescriptionError
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.service_types import ServiceType
from inference_engine_proxy_server.discovery.mdns_backends import Service, backend_of, in_order
from inference_engine_proxy_server.discovery.source import SourceReport

if TYPE_CHECKING:
    from zeroconf import Zeroconf

__all__ = ["MdnsSource"]

_FIRST_SECONDS = 1.0  # in which services answer the first question; a missing one joins later
_RESOLVE_MS = 3000
_CONNECT_SECONDS = 1.0
_LOOK_SECONDS = 10.0
_REFUSING_SECONDS = 60.0
_RETRY_SECONDS = 10.0  # after multicast could not be used
_PTR = 12  # type of the records that name the services of a type

logger = logging.getLogger(__name__)


def _interfaces() -> frozenset[str]:
    """The addresses of this machine."""
    import ifaddr

    return frozenset(str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips)


class MdnsSource:
    """The services of one type.

    Args:
        entry: the URL of the type, and what is true of every backend.
        interfaces: the addresses of this machine; after a change, the services are looked for again.
        look_seconds: interval of looks at these, and at services that are not heard of any more.
        refusing_seconds: for how long the port of such a service must refuse connections before it leaves.
        clock: a monotonic clock, in seconds.

    Attributes:
        name: its URL.
    """

    def __init__(
        self,
        entry: BackendConfig,
        interfaces: Callable[[], frozenset[str]] = _interfaces,
        look_seconds: float = _LOOK_SECONDS,
        refusing_seconds: float = _REFUSING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = entry.url
        self._entry = entry
        self._kind = ServiceType.of(entry.url)
        self._interfaces = interfaces
        self._look_seconds = look_seconds
        self._refusing_seconds = refusing_seconds
        self._clock = clock
        self._found: dict[str, tuple[Service, str]] = {}  # with the address that is used, by full name
        self._unheard: dict[str, float | None] = {}  # since when their ports refuse connections
        self._present: set[str] = set()  # full names that are heard of, whether or not they are resolved yet
        self._goodbyes: set[str] = set()
        self._complained: dict[str, str] = {}
        self._report: SourceReport | None = None

    def __repr__(self) -> str:
        return f"<MdnsSource {self.name} of {len(self._found)} services>"

    def configure(self, entry: BackendConfig) -> None:
        """Apply other options to all backends of the type; its URL must be the same."""
        if entry != self._entry:
            self._entry = entry
            self._publish()

    async def run(self, report: SourceReport) -> None:
        """See :class:`~.source.Source`."""
        while True:
            try:
                async with self._browsing() as (zeroconf, changes):
                    await self._follow(zeroconf, changes, report)
            except OSError as error:
                report.failed(f"multicast DNS cannot be used: {error.strerror or error}")
                await asyncio.sleep(_RETRY_SECONDS)
            self._unheard = dict.fromkeys(self._found)  # until they are heard of on the changed network

    async def _follow(self, zeroconf: Zeroconf, changes: asyncio.Queue[tuple[str, bool]], report: SourceReport) -> None:
        """Follow the changes until the network interfaces change."""
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._take_changes(group, zeroconf, changes))
            await asyncio.sleep(_FIRST_SECONDS)
            self._report = report
            self._publish()
            interfaces = self._interfaces()
            while interfaces == self._interfaces():
                await asyncio.sleep(self._look_seconds)
                await self._look_at_unheard()
            logger.info("discovery: %s: the network interfaces have changed", self.name)
            following.cancel()

    async def _take_changes(
        self, group: asyncio.TaskGroup, zeroconf: Zeroconf, changes: asyncio.Queue[tuple[str, bool]]
    ) -> None:
        while True:
            name, is_gone = await changes.get()
            if is_gone:
                self._present.discard(name)
                self._on_gone(name)
            else:
                self._present.add(name)
                self._goodbyes.discard(name)
                group.create_task(self._resolve(zeroconf, name))

    def _on_gone(self, name: str) -> None:
        """A goodbye is meant; but records also expire because the network loses multicast packets."""
        if name in self._goodbyes:
            self._goodbyes.discard(name)
            self._leave(name)
        elif name in self._found:
            self._unheard[name] = None
            logger.warning("discovery: %s: %s is not heard of any more; it stays while it answers", self.name, name)

    def _leave(self, name: str) -> None:
        self._found.pop(name, None)
        self._unheard.pop(name, None)
        self._publish()

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        """Ask for the address of the service ``name``, and what it says of itself."""
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(self._kind.name, name)
        if not await info.async_request(zeroconf, _RESOLVE_MS) or info.port is None:
            return
        properties = {key.lower(): value or "" for key, value in info.decoded_properties.items()}
        instance = name.removesuffix(f".{self._kind.name}")
        service = Service(instance, in_order(info.parsed_addresses()), info.port, properties)
        before = self._found.get(name)
        address = before[1] if before is not None and before[1] in service.addresses else await _reachable(service)
        if address is not None and name in self._present:  # it may have gone meanwhile
            self._unheard.pop(name, None)
            self._found[name] = service, address
            self._publish()

    async def _look_at_unheard(self) -> None:
        for name, refusing_since in list(self._unheard.items()):
            if name not in self._found:
                continue
            service, address = self._found[name]
            accepts = await _accepts(address, service.port)
            if name not in self._unheard:  # it was heard of meanwhile, or has said goodbye
                continue
            if accepts or refusing_since is None:
                self._unheard[name] = None if accepts else self._clock()
            elif self._clock() - refusing_since >= self._refusing_seconds:
                self._leave(name)

    def _publish(self) -> None:
        if self._report is None:  # the first answers are still coming in
            return
        backends: dict[str, BackendConfig] = {}
        for name, (service, address) in self._found.items():
            try:
                backend = backend_of(service, address, self._kind, self._entry)
            except DescriptionError as error:
                if self._complained.get(name) != str(error):
                    self._complained[name] = str(error)
                    logger.warning("discovery: %s: %s describes itself wrongly: %s", self.name, name, error)
            else:
                backends.setdefault(backend.url, backend)
        self._report.found(list(backends.values()))

    @asynccontextmanager
    async def _browsing(self) -> AsyncIterator[tuple[Zeroconf, asyncio.Queue[tuple[str, bool]]]]:
        """The service names that appear, change or go (``True``); raises ``OSError``."""
        from zeroconf import InterfaceChoice, RecordUpdate, RecordUpdateListener, ServiceStateChange
        from zeroconf import Zeroconf as ZeroconfClass
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        changes: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        goodbyes = self._goodbyes

        class Goodbyes(RecordUpdateListener):
            def async_update_records(self, _zc: ZeroconfClass, _now: float, records: list[RecordUpdate]) -> None:
                for update in records:
                    if update.new.type == _PTR and update.new.ttl == 0:  # RFC 6762, section 10.1
                        goodbyes.add(getattr(update.new, "alias", ""))

        def on_change(name: str, state_change: ServiceStateChange, **_: Any) -> None:
            changes.put_nowait((name, state_change is ServiceStateChange.Removed))

        interface = self._kind.interface
        zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if interface is None else [interface])
        try:
            zeroconf.zeroconf.add_listener(Goodbyes(), None)
            browser = AsyncServiceBrowser(zeroconf.zeroconf, self._kind.name, handlers=[on_change])
            yield zeroconf.zeroconf, changes
            await browser.async_cancel()
        finally:
            await zeroconf.async_close()


async def _reachable(service: Service) -> str | None:
    """The first address that accepts connections; else the first one, because the engine may be starting."""
    if len(service.addresses) > 1:
        accepts = await asyncio.gather(*(_accepts(address, service.port) for address in service.addresses))
        for address, is_open in zip(service.addresses, accepts, strict=True):
            if is_open:
                return address
    return next(iter(service.addresses), None)


async def _accepts(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
