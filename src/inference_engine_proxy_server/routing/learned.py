"""A snapshot of the knowledge about each backend, for metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.expected_time.prefix_index import PrefixIndex

__all__ = ["BackendLearning", "LearnedSnapshot"]


@dataclass(frozen=True, slots=True)
class BackendLearning:
    """The knowledge about one backend; of a router, about all its models together.

    Attributes:
        url: base URL of the backend.
        prompt_tokens: tokens of prompts whose replies reported cached tokens.
        predicted_tokens: the part of them that the proxy expected to be cached.
        cached_tokens: the part of them that was cached.
        prompts_reading: prompts that the backend has not read yet.
        reads_per_second: prompt tokens that it reads per second; ``None`` while unknown, and for a router, whose models
            differ.
        seconds_per_token: time for one token of each answer, at the current number of concurrent answers; ``None``
            likewise.
        kept_prompt_bytes: bytes of prompts that its cache is estimated to keep.
    """

    url: str
    prompt_tokens: float
    predicted_tokens: float
    cached_tokens: float
    prompts_reading: int
    reads_per_second: float | None
    seconds_per_token: float | None
    kept_prompt_bytes: float

    @classmethod
    def of(cls, candidates: Sequence[Candidate], index: PrefixIndex) -> BackendLearning:
        """The knowledge about a backend; ``candidates``: the one for the backend, and those for its models."""
        whole, works = candidates[0], [one.work for one in candidates]
        work, speeds = whole.work, whole.work.speeds
        return cls(
            url=whole.backend.url,
            prompt_tokens=sum(one.reuse.sent for one in works),
            predicted_tokens=sum(one.reuse.predicted for one in works),
            cached_tokens=sum(one.reuse.cached for one in works),
            prompts_reading=sum(one.reading for one in works),
            reads_per_second=speeds.reads if speeds.is_known else None,
            seconds_per_token=speeds.seconds_a_token(max(1, work.writing)) if speeds.writing_is_known else None,
            kept_prompt_bytes=index.keeps(whole.number),
        )


@dataclass(frozen=True, slots=True)
class LearnedSnapshot:
    """The knowledge about the fleet.

    Attributes:
        backends: the knowledge about each backend.
        index_bytes: memory of the prefix index.
        index_runs: runs of blocks in the prefix index.
    """

    backends: tuple[BackendLearning, ...]
    index_bytes: int
    index_runs: int

    @classmethod
    def of(cls, backends_candidates: Iterable[Sequence[Candidate]], index: PrefixIndex) -> LearnedSnapshot:
        """The knowledge about all backends; ``backends_candidates``: the candidates of each."""
        backends = tuple(BackendLearning.of(candidates, index) for candidates in backends_candidates)
        return cls(backends, index.bytes_used, len(index))
