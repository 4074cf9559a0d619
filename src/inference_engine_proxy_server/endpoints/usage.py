"""`/v1/usage`: what a key has used. `/admin/usage`: what all keys have used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response

from inference_engine_proxy_server.access.allowances import Budget
from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, NotALedgerError
from inference_engine_proxy_server.usage.query import GROUPS, QueryError, UsageQuery, query_of, read_rows
from inference_engine_proxy_server.usage.report import as_csv, as_json

__all__ = ["described_budgets", "usage_router"]

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
_COVERED = {"covers": "replica"}  # by the rows of a report
_CSV: dict[str, Any] = {"content": {"text/csv": {}, "application/json": {}}}


def usage_router(file: Path | None, now: Callable[[], float], *, is_shared: bool = False) -> APIRouter:
    """Both endpoints.

    Args:
        file: the ledger; ``None`` when usage is not recorded.
        now: seconds since the epoch.
        is_shared: whether budgets are those of all replicas together. The ledger is that of this replica.
    """
    budgets_cover = "all_replicas" if is_shared else "process" if file is None else "replica"
    router = APIRouter()

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
        more = _COVERED | {
            "key": key or None,
            "budgets": described_budgets(budgets),
            "budgets_cover": budgets_cover,
        }
        return Response(await _json(file, query, more), media_type="application/json")

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
        if format == "json":
            return Response(await _json(file, query, _COVERED), media_type="application/json")
        return Response(await _read(lambda: as_csv(query, read_rows(file, query))), media_type="text/csv")

    return router


def described_budgets(budgets: Iterable[Budget]) -> list[dict[str, Any]]:
    """Budgets for a reply."""
    return [{**budget._asdict(), "left": budget.left} for budget in budgets]


def _query(parts: Mapping[str, str | None], now: float) -> UsageQuery:
    try:
        return query_of(parts, now)
    except QueryError as error:
        raise ClientError(f"{error}.") from None


async def _json(file: Path | None, query: UsageQuery, more: Mapping[str, Any]) -> bytes:
    if file is None:
        return as_json(query, (), more)
    return await _read(lambda: as_json(query, read_rows(file, query), more))


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
