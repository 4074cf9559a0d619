"""What llama.cpp's router reports of each of its models.

A router is a ``llama-server`` without a model of its own: it starts one process for each model that requests name, and
ends the least recently used one when it has ``--models-max`` of them.

A poll must never load a model. Only models in memory are asked, with ``autoload=false``: if the router has unloaded one
in the meantime, it answers 400. Sources: llama.cpp ``tools/server/README.md`` and ``server-models.cpp`` of build 11434.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import pairwise
from typing import Annotated
from urllib.parse import quote

import msgspec

from inference_engine_proxy_server.backends.base import ModelEntry, ModelReport, non_negative
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["fetch_model_reports", "is_router", "status_value"]

_PROCESSING = "llamacpp:requests_processing"
_DEFERRED = "llamacpp:requests_deferred"
_IN_MEMORY = frozenset({"loading", "loaded", "sleeping"})  # a model in these states has a process
_USUAL_SLOTS = 4  # llama.cpp's own choice without --parallel
_MOST_ASKED = 32  # models in memory that one poll asks

FetchBody = Callable[[str], Awaitable[bytes | None]]
"""The body of a reply with status 200 to a GET of this path; ``None`` without one. Raises nothing."""


class _Props(msgspec.Struct):
    total_slots: Annotated[int, msgspec.Meta(ge=1)] | None = None


def is_router(models: Iterable[ModelEntry]) -> bool:
    """Whether ``models`` come from a router: only a router reports their status."""
    return any(isinstance(model.get("status"), dict) for model in models)


def status_value(model: ModelEntry) -> str:
    """The status of a model of a router: ``unloaded``, ``loading``, ``loaded``, ``sleeping``, ..., or ``failed``.

    An entry of the models list has ``"status": {"value": "unloaded", "failed": true, "exit_code": 1, "args": [...]}``.
    """
    status = model.get("status")
    if not isinstance(status, dict):
        return "unknown"
    value = "failed" if status.get("failed") is True else status.get("value")
    return value if isinstance(value, str) else "unknown"


async def fetch_model_reports(models: Iterable[ModelEntry], fetch_body: FetchBody) -> dict[str, ModelReport]:
    """A report of each model, by id.

    The number of slots comes from ``/props``, which does not wake a sleeping model; before a model was loaded, from its
    arguments. The load comes from ``/metrics``. ``/slots`` is not used, because it wakes sleeping models. The load of a
    model that may sleep stays unknown: in older builds, ``/metrics`` wakes it or keeps it awake (llama.cpp#20227).
    """
    reports: dict[str, ModelReport] = {}
    left = _MOST_ASKED
    for model in models:
        value, slots = status_value(model), _stated_slots(model)
        processing = waiting = None
        query = f"?model={quote(model['id'], safe='')}&autoload=false"
        if value in ("loaded", "sleeping") and left > 0:
            left -= 1
            slots = _slots_of(await fetch_body(f"/props{query}")) or slots
            if value == "loaded" and not _may_sleep(model):
                sums = sum_samples(await fetch_body(f"/metrics{query}") or b"", (_PROCESSING, _DEFERRED))
                processing, waiting = non_negative(sums.get(_PROCESSING)), non_negative(sums.get(_DEFERRED))
        reports[model["id"]] = ModelReport(
            status=value,
            in_memory=value in _IN_MEMORY,
            is_ready=value == "loaded",
            capacity=slots,
            requests_processing=processing,
            requests_waiting=waiting,
        )
    return reports


def _slots_of(props: bytes | None) -> int | None:
    try:
        return None if props is None else msgspec.json.decode(props, type=_Props).total_slots
    except (ValueError, RecursionError):
        return None


def _stated_slots(model: ModelEntry) -> int:
    stated = _argument(model, ("--parallel", "-np"))
    return int(stated) if stated.isdecimal() and 1 <= int(stated) <= 1_000_000 else _USUAL_SLOTS


def _may_sleep(model: ModelEntry) -> bool:
    return _argument(model, ("--sleep-idle-seconds",)) not in ("", "-1")


def _argument(model: ModelEntry, names: tuple[str, ...]) -> str:
    """The value of one of the arguments of a model's process; empty if it has none."""
    status = model.get("status")
    arguments = status.get("args") if isinstance(status, Mapping) else None
    if not isinstance(arguments, list):
        return ""
    pairs = pairwise(arguments)
    return next((value for name, value in pairs if name in names and isinstance(value, str)), "")
