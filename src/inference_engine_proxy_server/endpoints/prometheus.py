"""`/metrics`: the page for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.telemetry.exposition import Families, Labels, family

__all__ = ["MetricsPage", "prometheus_router"]

_METRICS = "metrics"
_FAMILY = b"# HELP "
_SLICE_SECONDS = 0.001  # of writing, between which the event loop serves requests


class MetricsPage:
    """The page for Prometheus: of this process, or of all workers with a label ``worker``.

    Args:
        sources: write the families.
        siblings: the other workers.
        labels: formats labels.
    """

    def __init__(self, sources: Sequence[Families], siblings: Siblings, labels: Labels) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._process = registry
        self._sources = sources
        self._siblings = siblings
        self._labels = labels

    @property
    def answers(self) -> Answers:
        """The answers of this worker to queries of its siblings."""
        return {_METRICS: self._own}

    async def text(self) -> bytes:
        """The whole page."""
        if not self._siblings.others:
            return await self._own()
        others, own = await asyncio.gather(self._siblings.ask(_METRICS), self._own())
        pages = [own, *(page for page in others.values() if page is not None)]
        return _merged([*pages, self._workers(others).encode()])

    def _workers(self, others: dict[int, bytes | None]) -> str:
        """Which workers have reported."""
        reported = {**{number: page is not None for number, page in others.items()}, self._siblings.number: True}
        samples = [(f'{{worker="{number}"}}', int(is_up)) for number, is_up in sorted(reported.items())]
        return "".join(family("inference_proxy_worker_up", "gauge", "1 if the worker reported its metrics.", samples))

    async def _own(self) -> bytes:
        pieces: list[str] = []
        slice_ends = time.perf_counter() + _SLICE_SECONDS
        for piece in self._pieces():
            pieces.append(piece)
            if time.perf_counter() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = time.perf_counter() + _SLICE_SECONDS
        return "".join(pieces).encode()

    def _pieces(self) -> Iterator[str]:
        for source in self._sources:
            yield from source()
        for found in self._process.collect():
            samples = [(self._labels.of(**one.labels), one.value) for one in found.samples]
            name = found.name + "_total" * (found.type == "counter")
            yield from family(name, found.type, found.documentation, samples)


def _merged(pages: Iterable[bytes]) -> bytes:
    """One page that has every family once, with the samples of all ``pages``."""
    families: dict[bytes, list[bytes]] = {}
    for page in pages:
        for block in page.split(_FAMILY)[1:]:
            # A family consists of two lines of explanation, and its samples.
            head, kind, samples = block.split(b"\n", 2)
            families.setdefault(head, [kind + b"\n"]).append(samples)
    return b"".join(_FAMILY + head + b"\n" + b"".join(parts) for head, parts in families.items())


def prometheus_router(page: MetricsPage) -> APIRouter:
    """``GET /metrics``, which returns ``page``."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def expose() -> Response:
        return Response(await page.text(), media_type=CONTENT_TYPE_LATEST)

    return router
