"""KoboldCpp.

Source: ``koboldcpp.py`` of KoboldCpp 1.120 (e59617c), compared with 1.102 (000115d) and 1.76 (2da346a).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    ModelEntry,
    ModelNames,
    ModelReport,
    ModelStatus,
    Thresholds,
    decoded,
    non_negative,
)

__all__ = ["KoboldCppBackend"]

_Count = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
_NO_MODEL = "inactive"  # in the place of a name, without the prefix in older versions


class _Version(msgspec.Struct):
    version: str


class _Perf(msgspec.Struct):
    """``/api/extra/perf``: requests that wait for their turn; and 1 while none is in process, else 0."""

    queue: float
    idle: int
    total_gens: float = 0.0
    last_process_speed: float | None = None
    last_eval_speed: float | None = None


class _Props(msgspec.Struct):
    """``/props``, which older versions lack."""

    total_slots: _Count | None = None
    n_ctx: _Count | None = None
    role: str = ""


class KoboldCppBackend(BaseBackend):
    """Health and version from ``/api/extra/version``, load from ``/api/extra/perf``, context and slots from ``/props``.

    All of these paths answer without a key (``--password``), and while it generates. While it loads a model it does not
    listen at all.

    It processes one request at a time; a few others wait, as many as ``--multiuser`` allows, and the next one gets 503.
    With ``--parallelrequests`` it processes several, but ``/props`` says one slot all the same, and ``/api/extra/perf``
    only that it is not idle. The fleet file can state its ``capacity``.
    """

    providers: ClassVar[tuple[str, ...]] = ("koboldcpp",)
    health_path: ClassVar[str] = "/api/extra/version"

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored, because it bounds its queue itself."""
        super().__init__(url, get, thresholds)
        self._props = _Props()  # as last reported: without an answer, a router stays one

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        ``requests_processing``: 0 or 1; with ``--parallelrequests``, 1 stands for one or more.
        ``figures``: requests since it started; tokens per second that the latest one read and wrote.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/api/extra/version``.
        """
        reply = await self.get(self.health_path)
        if reply.status != 200:
            self._props = _Props()  # another process may take over the address
            return BackendState(ready=False, live=False, reason=f"GET /api/extra/version answered {reply.status}")
        version = decoded(reply.body, _Version)
        models = _text_models(await self.fetch_models())
        props = self._props = decoded(await self.fetch_body("/props"), _Props) or self._props
        perf = decoded(await self.fetch_body("/api/extra/perf"), _Perf)
        processing = None if perf is None else float(perf.idle == 0)
        waiting = None if perf is None else non_negative(perf.queue)
        is_router = props.role == "router"
        reports = _reports(models or (), props.total_slots, processing, waiting) if is_router else {}
        return BackendState(
            ready=True,
            requests_processing=processing,
            requests_waiting=waiting,
            capacity=props.total_slots,
            models=models,
            model_names=ModelNames.UNKNOWN if is_router else ModelNames.ANY,
            statuses={name: ModelStatus.COLD for name, report in reports.items() if not report.is_ready},
            model_reports=reports,
            most_models=1 if is_router else None,
            contexts={models[0]["id"]: props.n_ctx} if models and props.n_ctx else {},
            streams_usage_on_request=True,
            figures={} if perf is None else _figures(perf),
            engine_version=None if version is None else version.version,
        )


def _text_models(models: tuple[ModelEntry, ...] | None) -> tuple[ModelEntry, ...] | None:
    """Without the entry that stands for no text model: it may serve only images, speech or embeddings."""
    return None if models is None else tuple(one for one in models if one["id"].rpartition("/")[2] != _NO_MODEL)


def _reports(
    models: tuple[ModelEntry, ...], slots: int | None, processing: float | None, waiting: float | None
) -> dict[str, ModelReport]:
    """A report of each model of a router (``--routermode``), by id.

    It lists the model in memory first, then each configuration that it can start in its place, and calls them all
    loaded. Its load is that of the model in memory.
    """
    reports = {one["id"]: ModelReport("unloaded", in_memory=False, is_ready=False, capacity=slots) for one in models}
    if models:
        reports[models[0]["id"]] = ModelReport(
            "loaded",
            in_memory=True,
            is_ready=True,
            capacity=slots,
            requests_processing=processing,
            requests_waiting=waiting,
        )
    return reports


def _figures(perf: _Perf) -> dict[str, float]:
    found = {
        "total_gens": perf.total_gens,
        "last_process_speed": perf.last_process_speed,
        "last_eval_speed": perf.last_eval_speed,
    }
    checked = {name: non_negative(value) for name, value in found.items()}
    return {name: value for name, value in checked.items() if value is not None}
