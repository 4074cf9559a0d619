"""Notes in the journal which requests the proxy itself has rejected, and why."""

from __future__ import annotations

from inference_engine_proxy_server.telemetry.journal import Journal, Severity
from inference_engine_proxy_server.telemetry.request_record import RequestRecord

__all__ = ["note_rejection"]

# By the code of the error that the client got.
_REASONS = {
    "queue_full": "A request was rejected, because the queue is full.",
    "queue_timeout": "A request was rejected, because it waited too long for a free backend.",
    "no_backend_available": "A request was rejected, because no backend that serves it is available.",
    "model_not_found": "A request was rejected, because no backend serves its model.",
    "context_length_exceeded": "A request was rejected, because its prompt is longer than the context of its model.",
    "rate_limit_exceeded": "A request was rejected, because a limit of its key is reached.",
    "insufficient_quota": "A request was rejected, because the budget of its key is spent.",
    "invalid_api_key": "A request was rejected, because it has no valid API key.",
    "request_timeout": "A request was ended, because its reply was not complete in time.",
    "request_cancelled": "A request was ended, because an operator cancelled it.",
}


def note_rejection(journal: Journal, record: RequestRecord) -> None:
    """Note the end of a request in ``journal``, if the proxy itself ended it."""
    text = _REASONS.get(record.termination)
    if text is None:
        return
    about = [f"{what} {name[:100]}" for what, name in (("model", record.model), ("key", record.key)) if name]
    if about:
        text = f"{text.removesuffix('.')} ({', '.join(about)})."
    severity: Severity = "info" if record.termination == "request_cancelled" else "warning"
    journal.note("rejection", text, severity=severity)
