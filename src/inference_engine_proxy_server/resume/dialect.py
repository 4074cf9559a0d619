"""What the continuation of a stream needs to know about its API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, TypeVar

from inference_engine_proxy_server.backends.base import Api
from inference_engine_proxy_server.resume.members import Members, largest, texts
from inference_engine_proxy_server.resume.seam import Seam
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["Dialect", "RequestRules"]

RequestRules = Mapping[str, Callable[[Members], bool]]
"""How a request breaks each of :data:`~.rules.REQUEST_RULES`. The order decides which rule is reported."""

AnyTranscript = TypeVar("AnyTranscript", bound=Transcript)


class Dialect(ABC, Generic[AnyTranscript]):
    """How one API streams an answer, and how a request for the rest of one is made.

    Attributes:
        api: a backend must be able to continue its answers.
        paths: of its requests.
        rules: those that a request of this API can break.
        limits: members that limit the tokens of an answer.
        stops: the member with the stop strings, at which an answer ends.
    """

    api: ClassVar[Api]
    paths: ClassVar[tuple[str, ...]]
    rules: ClassVar[RequestRules]
    limits: ClassVar[tuple[str, ...]]
    stops: ClassVar[str] = "stop"

    def stop_strings(self, members: Members) -> list[str]:
        """The texts at which the answer ends."""
        return texts(members, self.stops)

    def broken_rule(self, members: Members) -> str | None:
        """The name of the first rule that the request breaks; ``None`` if it breaks none."""
        return next((name for name, is_broken in self.rules.items() if is_broken(members)), None)

    def tokens_left(self, members: Members, delivered: int) -> int | None:
        """How many tokens the continuation may have; ``None`` if the request sets no limit.

        Which of several limits counts differs from engine to engine. With the largest one, no answer is cut.

        Args:
            members: of the original request.
            delivered: tokens delivered so far.
        """
        limit = largest(members, self.limits)
        return None if limit is None else limit - delivered

    def wants_usage(self, members: Members) -> bool:
        """Whether :meth:`ending` could lack a usage that the client wants."""
        del members
        return False

    @abstractmethod
    def transcript(self) -> AnyTranscript:
        """An empty transcript of a stream."""

    @abstractmethod
    def seam(self, transcript: AnyTranscript, seconds: float) -> Seam:
        """The place where a continuation joins the stream, see :class:`~.seam.Seam`."""

    @abstractmethod
    def continued(self, members: Members, transcript: AnyTranscript) -> bytes:
        """The body of the request that continues an answer; without delivered text, the answer starts anew.

        Args:
            members: of the original request, which breaks no rule.
            transcript: of what was delivered, by which limits are reduced.
        """

    @abstractmethod
    def ending(self, members: Members, transcript: AnyTranscript) -> bytes:
        """The missing last events of an answer whose tokens were all delivered."""

    @abstractmethod
    def is_failure(self, event: bytes) -> bool:
        """Whether an engine ends a failed stream with this event. An error below 500 is about the request."""
