"""Who sees a snapshot, and under which names backends appear there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inference_engine_proxy_server.access.gate import Viewer
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot

__all__ = ["Audience"]


class Audience(NamedTuple):
    """All viewers that see the same.

    Attributes:
        admin_key: see :class:`~.gate.Viewer`.
        sees_addresses: they see the base URLs of backends.
    """

    admin_key: str
    sees_addresses: bool

    @classmethod
    def of(cls, viewer: Viewer, *, hides_names: bool) -> Audience:
        """The audience of ``viewer``; ``hides_names``: addresses are shown to clients with a key only."""
        return cls(viewer.admin_key, viewer.is_operator or viewer.has_key or not hides_names)

    @property
    def is_operators(self) -> bool:
        """Whether it sees everything."""
        return self.admin_key == "accepted"

    def names(self, backends: Sequence[BackendSnapshot]) -> dict[str, str]:
        """The name of each backend by its base URL: as configured for operators, for others as in ``/health``."""
        if self.is_operators:
            return {backend.url: backend.name for backend in backends}
        if self.sees_addresses:
            return {backend.url: backend.url for backend in backends}
        return {backend.url: f"backend-{at}" for at, backend in enumerate(backends, 1)}
