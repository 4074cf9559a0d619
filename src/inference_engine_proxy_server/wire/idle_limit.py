"""How many idle connections a backend keeps: as many as it had in use together of late, within a bound for all.

A connection is opened only when all others are in use, and an idle one closes when nobody has needed it for a while.
The open connections therefore show the recent peak of concurrent requests. The limit follows this number in steps: up
as soon as one more connection is to be kept, down by one step at a time.
"""

from __future__ import annotations

__all__ = ["IdleLimit", "IdleReserve"]

_USUAL = 32  # of every backend; nginx's default
_STEP = 32
_SHRINK_SECONDS = 3.0  # at least, between two steps down


class IdleReserve:
    """The idle connections that backends may keep beyond the usual number, all of them together.

    Args:
        connections: how many; each needs an open file.
    """

    __slots__ = ("left",)

    def __init__(self, connections: int) -> None:
        self.left = connections


class IdleLimit:
    """The number of idle connections that one backend may keep.

    Args:
        reserve: shared by all backends.

    Attributes:
        most: how many idle connections the backend may keep now.
    """

    __slots__ = ("_reserve", "_shrinks_at", "most")

    def __init__(self, reserve: IdleReserve) -> None:
        self._reserve: IdleReserve | None = reserve
        self._shrinks_at = 0.0
        self.most = _USUAL

    @property
    def is_raised(self) -> bool:
        """Whether the backend may keep more than the usual number."""
        return self.most > _USUAL

    def grow(self) -> bool:
        """Raise the limit by a step; ``False`` when the reserve is empty."""
        reserve = self._reserve
        if reserve is None or reserve.left <= 0:
            return False
        step = min(_STEP, reserve.left)
        reserve.left -= step
        self.most += step
        return True

    def shrink(self, open_connections: int, now: float) -> None:
        """Lower the limit by a step if it is too high for ``open_connections``; not soon after the last step."""
        if self._reserve is None or now < self._shrinks_at:
            return
        self._shrinks_at = now + _SHRINK_SECONDS
        step = min(_STEP, self.most - _USUAL)
        if open_connections <= self.most - step:
            self._reserve.left += step
            self.most -= step

    def close(self) -> None:
        """Give back what the backend took from the reserve, and take no more."""
        if self._reserve is not None:
            self._reserve.left += self.most - _USUAL
            self._reserve = None
            self.most = _USUAL
