"""What a source of backends is, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inference_engine_proxy_server.config.fleet import BackendConfig

__all__ = ["Source", "SourceReport"]


class SourceReport(Protocol):
    """Takes what one source reports. Both methods may be called at any time, from the event loop."""

    def found(self, backends: Sequence[BackendConfig]) -> None:
        """The source has answered: ``backends`` is its complete set now, which may be empty or unchanged.

        URLs must be normal, as of ``as_base_url``, and engines known, as of ``check_engines``.
        """

    def failed(self, problem: str, *, backends_leave: bool = False) -> None:
        """The source has not answered, or its answer is not credible. Its last set stays in force.

        Args:
            problem: why, in a few words, such as "the name server does not answer"; the same text while the same
                problem lasts, because each new one is logged.
            backends_leave: the problem has lasted for so long that its last set no longer counts.
        """


class Source(Protocol):
    """Finds backends.

    A source that fails must not report an empty set: engines that work would leave the fleet.
    """

    @property
    def name(self) -> str:
        """For people, such as "announcements"; it is unique and does not change."""

    async def run(self, report: SourceReport) -> None:
        """Report the complete set whenever it may have changed, and each problem, until cancelled.

        The start of the proxy waits for the first report, for a short time; so a source without backends reports an
        empty set.
        """
