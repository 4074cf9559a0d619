"""Request records with usual values."""

from __future__ import annotations

from typing import Any

from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["request_record"]

_USUAL: dict[str, Any] = {
    "client": "1.2.3.4:5",
    "method": "GET",
    "path": "/",
    "status": 200,
    "outcome": Outcome.COMPLETE,
    "backend": None,
    "model": None,
    "first_byte_seconds": 0.1,
    "seconds": 0.2,
    "sent_bytes": 3,
    "request_id": "id",
}


def request_record(**fields: Any) -> RequestRecord:
    """The record of a short request, with ``fields`` replaced."""
    return RequestRecord(**(_USUAL | fields))
