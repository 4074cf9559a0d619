"""What ties a request to one backend: something that it names, and that lives there alone.

Who has what is learned from requests and replies, and forgotten in time. So a name may be unknown here: this process
has been restarted, or another one had the request that made the thing. Then those who serve the model are asked, one
after the other, until one does not answer that it has no such thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference_engine_proxy_server.errors import DECLINABLE_STATUSES
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.resource_names import (
    is_stream,
    name_in_body,
    name_in_target,
    name_of_response,
    name_of_stream,
)
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_tail import ReplyTail

__all__ = ["Affinity", "AffinityTable", "AffinityTail"]

_NAMES = 65_536  # some 12 MB
_LACKING = frozenset({404})
_LACKING_OR_ENDED = frozenset({204, 404})  # llama.cpp ends a stream with 204, also one that it does not have


@dataclass(frozen=True, slots=True)
class Affinity:
    """What ties one request.

    Attributes:
        needed: the name of what it needs; ``None``: nothing that not every backend has.
        stream: the name by which its client may ask for its stream again; ``None``: not at all.
        home: who has what it needs, else who had its conversation's last stream; ``None``: not known.
        makes_response: its reply says by which name it may be asked for.
        ends: what it names is gone when it has been answered.
    """

    needed: bytes | None
    stream: bytes | None
    home: Backend | None
    makes_response: bool
    ends: bool

    @property
    def is_required(self) -> bool:
        """Whether only one backend can serve it."""
        return self.needed is not None

    @property
    def is_unlocated(self) -> bool:
        """Whether nobody knows which."""
        return self.needed is not None and self.home is None

    @property
    def allows_any_backend(self) -> bool:
        """Whether it does not matter who serves it, and only what comes after it will be tied."""
        return self.needed is None and self.home is None

    @property
    def held_statuses(self) -> frozenset[int]:
        """Replies that may not be the last word: of who is asked for what he may not have, those that say so."""
        if self.needed is None or not self.is_unlocated:
            return DECLINABLE_STATUSES
        return _LACKING_OR_ENDED if self.ends and is_stream(self.needed) else _LACKING


class AffinityTable:
    """Who has what, as far as is known: the last names that were of use, each with its backend's URL.

    A backend may lose what it had and say so. One that has left the fleet is not known any more.

    Args:
        fleet: gives all backends.
    """

    def __init__(self, fleet: Callable[[], Sequence[Backend]]) -> None:
        self._fleet = fleet
        self._homes: dict[bytes, str] = {}

    def of(self, exchange: Exchange) -> Affinity:
        """What ties the request of ``exchange``, whose destination is ``NAMED`` or ``TIED``."""
        head = exchange.head
        if head.destination is Destination.NAMED:
            needed = name_in_target(head.target)
            return Affinity(needed, None, self.home(needed), makes_response=False, ends=head.method == "DELETE")
        makes_response = head.path.endswith("/responses")
        needed = name_in_body(exchange.body) if makes_response else None
        stream = name_of_stream(head.passed_on)
        home = self.home(needed or stream)
        return Affinity(needed, stream, home, makes_response=makes_response, ends=False)

    def note(self, name: bytes, backend: Backend) -> None:
        """``backend`` has what ``name`` names."""
        homes = self._homes
        homes.pop(name, None)
        homes[name] = backend.url
        if len(homes) > _NAMES:
            del homes[next(iter(homes))]

    def home(self, name: bytes | None) -> Backend | None:
        """Who has what ``name`` names; ``None``: that is not known."""
        url = self._homes.get(name) if name is not None else None
        if url is None:
            return None
        return next((backend for backend in self._fleet() if backend.url == url), None)


class AffinityTail(ReplyTail):
    """Learns from a reply's first block who has what; no more is looked at.

    Args:
        bonds: are told.
        exchange: whose reply it is, and not begun.
        bond: ties the request.
        backend: gives the reply.
        listening: gets every block, too; ``None``: nobody does.
    """

    __slots__ = ("_backend", "_bonds", "_exchange", "_has_begun", "_listening", "_makes_response", "_needed")

    def __init__(
        self, bonds: AffinityTable, exchange: Exchange, bond: Affinity, backend: Backend, listening: ReplyTail | None
    ) -> None:
        super().__init__()
        self._bonds = bonds
        self._exchange = exchange
        self._backend = backend
        self._listening = listening
        self._makes_response = bond.makes_response
        # A stream that has been told something says 200, whatever the backend says.
        self._needed = None if bond.ends or exchange.is_only_told else bond.needed
        self._has_begun = False

    def take(self, block: bytes) -> None:
        """``block`` goes to the client."""
        if not self._has_begun:
            self._has_begun = True
            self._learn(block)
        if self._listening is not None:
            self._listening.take(block)

    def before(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """See :class:`ReplyTail`; ``write`` itself where nobody listens."""
        return write if self._listening is None else self._listening.before(write)

    def _learn(self, block: bytes) -> None:
        if self._exchange.status >= 400:
            return
        made = name_of_response(block) if self._makes_response else None
        for name in (self._needed, made):
            if name is not None:
                self._bonds.note(name, self._backend)
