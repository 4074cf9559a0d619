"""Affinity to a backend-local resource: a response, a stored completion or a stream that exists on one backend only.

A bounded table records which backend holds which resource, as learned from requests and replies. A name may be unknown,
because the proxy was restarted or another process served the request that created the resource. In that case the
backends that serve the model are tried one after another, until one gives another answer than "not found".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.content import RequestContent
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.resource_names import (
    is_stream,
    name_in_content,
    name_in_target,
    name_of_stream,
)
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Affinity", "AffinityTable", "Entry"]

_NAMES = 65_536  # about 12 MB
_LACKING = frozenset({404})
_LACKING_OR_ENDED = frozenset({204, 404})  # llama.cpp ends a stream with 204, even one that it does not have


@dataclass(frozen=True, slots=True)
class Affinity:
    """The affinity of one request.

    Attributes:
        resource: name of the backend-local resource that the request needs; ``None`` when it needs none.
        stream: name by which the client may request the reply's stream again; ``None`` when it cannot.
        home: the backend that holds the resource, or else that served the conversation's last stream; ``None`` when
            unknown.
        creates_response: the reply names a response that the client may request later.
        deletes: whether the request deletes the resource.
        creates_completion: the engine may store the completion, which its owner may ask for later.
    """

    resource: bytes | None
    stream: bytes | None
    home: Backend | None
    creates_response: bool
    deletes: bool
    creates_completion: bool = False

    @property
    def is_required(self) -> bool:
        """Whether only one backend can serve the request."""
        return self.resource is not None

    @property
    def is_unlocated(self) -> bool:
        """Whether only one backend can serve the request, and it is not known which one."""
        return self.resource is not None and self.home is None

    @property
    def lacking_statuses(self) -> frozenset[int]:
        """Statuses by which a backend may say that it lacks the resource."""
        ends_stream = self.deletes and self.resource is not None and is_stream(self.resource)
        return _LACKING_OR_ENDED if ends_stream else _LACKING


class Entry(NamedTuple):
    """Where a resource is.

    Attributes:
        url: of its backend.
        owner: name of the key that created it; ``None`` when unknown, or without keys.
    """

    url: str
    owner: str | None


class AffinityTable:
    """Maps the most recently used resource names to their backends and to the keys that created them.

    An entry may be outdated, because backends lose resources; their replies then say so. Entries of backends that have
    left the fleet are ignored.

    Args:
        fleet: returns all backends.

    Attributes:
        is_shared: whether other replicas may know more; see :meth:`find`.
    """

    is_shared = False

    def __init__(self, fleet: Callable[[], Sequence[Backend]]) -> None:
        self._fleet = fleet
        self._entries: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def affinity(self, head: RequestHead, content: RequestContent) -> Affinity:
        """The affinity of a request whose destination is ``NAMED`` or ``TIED``."""
        if head.destination is Destination.NAMED:
            resource = name_in_target(head.target)
            deletes = head.method == "DELETE"
            return Affinity(resource, None, self.home(resource), creates_response=False, deletes=deletes)
        creates_response = head.path.endswith("/responses")
        resource = name_in_content(content) if creates_response else None
        stream = name_of_stream(head.passed_on)
        home = self.home(resource or stream)
        return Affinity(resource, stream, home, creates_response=creates_response, deletes=False)

    def remember(self, name: bytes, backend: Backend, owner: str | None = None) -> None:
        """Record that ``backend`` holds the resource ``name``.

        Args:
            name: the resource's name.
            backend: holds the resource.
            owner: name of the key that created the resource, if known. A known owner is never replaced.
        """
        self.adopt(name, backend.url, owner)

    def adopt(self, name: bytes, url: str, owner: str | None) -> None:
        """Record that the backend ``url`` holds the resource ``name``; see ``remember``."""
        entries = self._entries
        before = entries.pop(name, None)
        entries[name] = Entry(url, owner if before is None or before.owner is None else before.owner)
        if len(entries) > _NAMES:
            del entries[next(iter(entries))]

    async def find(self, name: bytes) -> None:
        """Learn what other replicas know of the resource ``name``. Here, there are none."""

    def entry(self, name: bytes) -> Entry | None:
        """Where the resource ``name`` is; ``None`` when unknown."""
        return self._entries.get(name)

    def owner(self, name: bytes) -> str | None:
        """Name of the key that created the resource ``name``; ``None`` when unknown."""
        entry = self._entries.get(name)
        return None if entry is None else entry.owner

    def home(self, name: bytes | None) -> Backend | None:
        """The backend that holds the resource ``name``; ``None`` when unknown."""
        entry = self._entries.get(name) if name is not None else None
        if entry is None:
            return None
        return next((backend for backend in self._fleet() if backend.url == entry.url), None)
