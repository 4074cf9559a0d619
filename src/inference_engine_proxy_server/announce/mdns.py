"""Announces an engine to the local network by multicast DNS (RFC 6762 and RFC 6763)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

__all__ = ["SERVICE_TYPE", "MdnsPublisher", "NotPublishableError"]

SERVICE_TYPE = "_inference._tcp"
"""The type under which engines are published."""

_TOLD = ("name", "tier", "weight", "models")  # members of a description that listeners understand
_RETRY_SECONDS = 5.0
_MOST_LABEL = 63  # bytes of an instance's name

logger = logging.getLogger(__name__)


class NotPublishableError(Exception):
    """Other machines cannot reach the engine by its URL; the text says what to change."""


class MdnsPublisher:
    """Publishes one engine; a :class:`~.session.Membership` in the fleets of all proxies that listen.

    Args:
        entry: the backend, as the fleet file describes it.
        interface: IPv4 address of the network interface to use; empty for all.

    Attributes:
        has_joined: whether it has been published.
        refused: never set, because nobody answers.

    Raises:
        NotPublishableError: the URL of the engine has no address for other machines.
    """

    def __init__(self, entry: Mapping[str, Any], interface: str = "") -> None:
        self.has_joined = False
        self.refused = asyncio.Event()
        self._entry = entry
        self._interface = interface
        self._parts = urlsplit(str(entry["url"]))
        self._addresses = self._published_addresses()
        self._zeroconf: AsyncZeroconf | None = None

    def _published_addresses(self) -> list[str]:
        host = self._parts.hostname or ""
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NotPublishableError(f"--backend: {host} has no address: {error.strerror or error}") from None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        is_for_others = not self._interface or not _is_loopback(self._interface)
        if is_for_others and any(_is_loopback(address) for address in addresses):
            raise NotPublishableError(
                f"--backend: other machines cannot reach {host}: give the address of this machine"
            )
        return addresses

    async def run(self) -> None:
        """Stay published, until cancelled. If multicast cannot be used, it is tried again."""
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncZeroconf

        while not self.has_joined:
            try:
                # Kept before it is published: a signal may come while that lasts, and others have heard of it then.
                self._zeroconf = AsyncZeroconf(interfaces=[self._interface] if self._interface else InterfaceChoice.All)
                await (await self._zeroconf.async_register_service(self._service(), allow_name_change=True))
                self.has_joined = True
            except OSError as error:
                logger.warning("multicast DNS cannot be used: %s", error.strerror or error)
                await self._close()
                await asyncio.sleep(_RETRY_SECONDS)
        logger.info("%s is published as %s", self._entry["url"], SERVICE_TYPE)
        await asyncio.Event().wait()

    async def leave(self, wait_seconds: float, *, moves: bool = False) -> bool:
        """Say goodbye. Nobody tells whether requests are in progress, so this does not wait for their end."""
        del wait_seconds, moves
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._close()
            logger.info("%s is no longer published", self._entry["url"])
        return True

    async def _close(self) -> None:
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
            self._zeroconf = None

    def _service(self) -> AsyncServiceInfo:
        from zeroconf.asyncio import AsyncServiceInfo

        port = self._parts.port or (443 if self._parts.scheme == "https" else 80)
        told = {name: _as_text(self._entry[name]) for name in _TOLD if name in self._entry}
        label = told.get("name") or f"{self._parts.hostname}-{port}"
        return AsyncServiceInfo(
            f"{SERVICE_TYPE}.local.",
            f"{label[:_MOST_LABEL].replace('.', '-')}.{SERVICE_TYPE}.local.",
            parsed_addresses=self._addresses,
            port=port,
            properties={"scheme": self._parts.scheme, "path": self._parts.path, **told},
            server=f"{socket.gethostname().partition('.')[0]}-{port}.local.",
        )


def _is_loopback(address: str) -> bool:
    """Raises :class:`NotPublishableError` if it is no address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise NotPublishableError(f"--mdns: {address!r} is not the IPv4 address of an interface") from None


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
