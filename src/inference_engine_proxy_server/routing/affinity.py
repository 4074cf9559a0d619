"""Affinity to a backend-local resource: a response, a stored completion or a stream that exists on one backend only.

A bounded table records which backend holds which resource, as learned from requests and replies. A name may be unknown,
because the proxy was restarted or another process served the request that created the resource. In that case the
backends that serve the model are tried one after another, until one gives another answer than "not found".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

__all__ = ["Affinity", "AffinityTable"]

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
        deletes: the resource is gone after the reply.
    """

    resource: bytes | None
    stream: bytes | None
    home: Backend | None
    creates_response: bool
    deletes: bool

    @property
    def is_required(self) -> bool:
        """Whether only one backend can serve the request."""
        return self.resource is not None

    @property
    def is_unlocated(self) -> bool:
        """Whether only one backend can serve the request, and it is not known which one."""
        return self.resource is not None and self.home is None

    @property
    def allows_any_backend(self) -> bool:
        """Whether any backend may serve the request, and only later requests depend on the choice."""
        return self.resource is None and self.home is None

    @property
    def lacking_statuses(self) -> frozenset[int]:
        """Statuses by which a backend may say that it lacks the resource."""
        ends_stream = self.deletes and self.resource is not None and is_stream(self.resource)
        return _LACKING_OR_ENDED if ends_stream else _LACKING


class AffinityTable:
    """Maps the most recently used resource names to the URLs of their backends.

    An entry may be outdated, because backends lose resources; their replies then say so. Entries of backends that have
    left the fleet are ignored.

    Args:
        fleet: returns all backends.
    """

    def __init__(self, fleet: Callable[[], Sequence[Backend]]) -> None:
        self._fleet = fleet
        self._urls: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._urls)

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

    def remember(self, name: bytes, backend: Backend) -> None:
        """Record that ``backend`` holds the resource ``name``."""
        urls = self._urls
        urls.pop(name, None)
        urls[name] = backend.url
        if len(urls) > _NAMES:
            del urls[next(iter(urls))]

    def home(self, name: bytes | None) -> Backend | None:
        """The backend that holds the resource ``name``; ``None`` when unknown."""
        url = self._urls.get(name) if name is not None else None
        if url is None:
            return None
        return next((backend for backend in self._fleet() if backend.url == url), None)
