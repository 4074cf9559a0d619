"""`/v1/usage`: what a key has used. `/admin/usage`: what all keys have used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Query, Request, Response

from inference_engine_proxy_server.access.allowances import Budget
from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, NotALedgerError
from inference_engine_proxy_server.usage.query import GROUPS, QueryError, Row, UsageQuery, query_of, read_rows
from inference_engine_proxy_server.usage.report import as_csv, as_json
from inference_engine_proxy_server.usage.usage_of_replicas import LedgerRows, read_ledger, summed

__all__ = ["OtherReplicas", "described_budgets", "usage_router"]

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")

_TIME = "A date, or a time in UTC"
_From = Annotated[str | None, Query(alias="from", max_length=40, description=f"{_TIME}; default: 29 days ago.")]
_To = Annotated[str | None, Query(max_length=40, description=f"{_TIME}, excluded; a date means its end. Default: now.")]
_By = Annotated[str, Query(max_length=100, description=f"Groups, separated by commas: {', '.join(GROUPS)}.")]
_Key = Annotated[str | None, Query(max_length=100, description="Only this key.")]
_Model = Annotated[str | None, Query(max_length=1000, description="Only this model.")]
_Format = Annotated[Literal["json", "csv"], Query(description="Format of the reply.")]
_RESPONSES: dict[int | str, dict[str, Any]] = {400: {}, 401: {}, 404: {"description": "It is off"}, 503: {}}
_CSV: dict[str, Any] = {"content": {"text/csv": {}, "application/json": {}}}


class OtherReplicas(Protocol):
    """The other replicas of the proxy."""

    async def usage(self, query: UsageQuery) -> tuple[Mapping[str, LedgerRows], tuple[str, ...]]:
        """The rows of each replica for ``query``, by its name, and the names of the replicas that are silent."""


def usage_router(file: Path | None, now: Callable[[], float], other_replicas: OtherReplicas | None = None) -> APIRouter:
    """Both endpoints.

    Args:
        file: the ledger; ``None`` when usage is not recorded.
        now: seconds since the epoch.
        other_replicas: have ledgers of their own, and the same budgets; ``None`` without shared state.
    """
    router = APIRouter()
    _add_own(router, file, now, other_replicas)
    _add_every(router, file, now, other_replicas)
    return router


def _add_own(
    router: APIRouter, file: Path | None, now: Callable[[], float], other_replicas: OtherReplicas | None
) -> None:
    budgets_cover = "all_replicas" if other_replicas is not None else "process" if file is None else "replica"

    @router.get("/v1/usage", tags=["usage"], summary="The tokens that this key has used, and its budgets",
                response_class=Response, responses=_RESPONSES)  # fmt: skip
    async def own(
        request: Request, since: _From = None, to: _To = None, by: _By = "day,model", model: _Model = None
    ) -> Response:
        access: Access | None = request.state.access
        budgets = [] if access is None else list(access.allowance.budgets())
        if file is None and not budgets:
            raise _off()
        key = "" if access is None else access.key.name
        query = _query({"from": since, "to": to, "by": by, "model": model}, now())._replace(key=key)
        rows, silent = ((), ()) if file is None else await _rows(file, query, other_replicas)
        more = {
            "covers": _covered(other_replicas, silent),
            "key": key or None,
            "budgets": described_budgets(budgets),
            "budgets_cover": budgets_cover,
        }
        return Response(as_json(query, rows, more), media_type="application/json")


def _add_every(
    router: APIRouter, file: Path | None, now: Callable[[], float], other_replicas: OtherReplicas | None
) -> None:
    @router.get("/admin/usage", tags=["admin"], summary="The tokens that all keys have used", response_class=Response,
                responses=_RESPONSES | {200: _CSV})  # fmt: skip
    async def every(
        since: _From = None,
        to: _To = None,
        by: _By = "day,key,model",
        key: _Key = None,
        model: _Model = None,
        format: _Format = "json",  # noqa: A002 - the name of the parameter
    ) -> Response:
        if file is None:
            raise _off()
        query = _query({"from": since, "to": to, "by": by, "key": key, "model": model}, now())
        rows, silent = await _rows(file, query, other_replicas)
        covered = _covered(other_replicas, silent)
        if format == "csv":
            return Response(as_csv(query, rows), media_type="text/csv", headers={"x-usage-covers": covered})
        more = {} if other_replicas is None else {"silent_replicas": silent}
        return Response(as_json(query, rows, {"covers": covered, **more}), media_type="application/json")


def described_budgets(budgets: Iterable[Budget]) -> list[dict[str, Any]]:
    """Budgets for a reply."""
    return [{**budget._asdict(), "left": budget.left} for budget in budgets]


def _query(parts: Mapping[str, str | None], now: float) -> UsageQuery:
    try:
        return query_of(parts, now)
    except QueryError as error:
        raise ClientError(f"{error}.") from None


async def _rows(
    file: Path, query: UsageQuery, other_replicas: OtherReplicas | None
) -> tuple[Sequence[Row], tuple[str, ...]]:
    """The rows of all replicas that answer, and the names of the silent ones."""
    if other_replicas is None:
        return await _read(lambda: read_rows(file, query)), ()
    own, (others, silent) = await asyncio.gather(_read(lambda: read_ledger(file, query)), other_replicas.usage(query))
    return summed([own, *others.values()]), silent


def _covered(other_replicas: OtherReplicas | None, silent: tuple[str, ...]) -> str:
    """Whose requests the rows are about."""
    return "replica" if other_replicas is None else "some_replicas" if silent else "all_replicas"


async def _read(read: Callable[[], _Read]) -> _Read:
    """The result of ``read``, which blocks, from a thread."""
    try:
        return await asyncio.to_thread(read)
    except QueryError as error:
        raise ClientError(f"{error}.") from None
    except (*FILE_ERRORS, NotALedgerError) as error:
        logger.error("usage: the ledger cannot be read: %s", error)
        raise CapacityError("The usage cannot be read now.", code="usage_unreadable", retry_after_seconds=5) from error


def _off() -> ClientError:
    return ClientError("Usage is not recorded: USAGE_FILE is not set.", status=404, code="usage_off")
