"""Forwards requests to other models if their own cannot serve them."""

from __future__ import annotations

import logging
import math

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.renaming_forwarder import Forward, rewrite
from inference_engine_proxy_server.errors import (
    BackendError,
    CapacityError,
    ClientError,
    InvalidReply,
    PromptTooLong,
    ProxyError,
)
from inference_engine_proxy_server.models.catalog import Fallback, Meaning
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["FallbackForwarder"]

_BY_CODE = {
    "no_backend_available": "unavailable",
    "model_not_found": "unavailable",
    "context_length_exceeded": "too_long",
    "queue_timeout": "waiting",
    "queue_full": "waiting",
}
_MEANINGS = {
    "unavailable": "not available",
    "too_long": "too small for the prompt",
    "waiting": "busy",
    "failed": "failing",
}
_MOST_LOSSES = 1  # backends that may fail the request before its last one: it may be what kills them

logger = logging.getLogger(__name__)


class FallbackForwarder:
    """A forwarder for requests whose model has fallbacks.

    Args:
        forward: forwards a request to the model that it names.
        metrics: counts the requests that another model gets. journal: notes them.
    """

    def __init__(self, forward: Forward, metrics: RequestMetrics, journal: Journal) -> None:
        self._forward = forward
        self._metrics = metrics
        self._journal = journal

    async def forward(self, request: ProxiedRequest, name: str, meaning: Meaning) -> None:
        """Forward ``request`` to the first model that serves it.

        Args:
            request: nothing of its reply was sent.
            name: the client's name for the model.
            meaning: what it means.

        Raises:
            ProxyError: of the request's own model, if no model serves the request; or the reply began and broke.
        """
        head, body, fields = request.head, request.body, request.common_fields
        models = [Fallback(name, meaning.model, meaning.rewriting), *meaning.fallbacks]
        first_error: ProxyError | None = None
        try:
            for at, model in enumerate(models):
                rewrite(request, head, body, model.model, model.rewriting)
                request.alias = name if name != model.model else None
                is_last = at == len(models) - 1
                request.fallback_after_seconds = None if is_last else _longest_wait(meaning)
                if at:
                    request.common_fields = b"%bx-fallback-model: %b\r\n" % (fields, _as_field(model.name))
                try:
                    await self._forward(request)
                except ProxyError as error:
                    first_error = first_error or error
                    reason = _reason_for_fallback(request, error, meaning)
                    if reason is None and not request.awaits_reply:
                        raise
                    if reason is None or is_last:
                        break
                    self._note(request, meaning.model, models[at + 1].name, reason)
                else:
                    return
            request.common_fields = fields
            _answer(request, first_error)
        finally:
            del first_error  # its traceback refers to this frame: a reference cycle

    def _note(self, request: ProxiedRequest, model: str, fallback: str, reason: str) -> None:
        logger.warning("request %s: %s is %s, and %s gets it", request.request_id, model, _MEANINGS[reason], fallback)
        self._metrics.count_fallback(model, fallback, reason)
        text = f"Model {model} is {_MEANINGS[reason]}, and {fallback} gets request {request.request_id}."
        self._journal.note("fallback", text, severity="warning", like=f"{model} {fallback} {reason}")


def _longest_wait(meaning: Meaning) -> float:
    return math.inf if meaning.fallback_after_seconds is None else meaning.fallback_after_seconds


def _reason_for_fallback(request: ProxiedRequest, error: ProxyError, meaning: Meaning) -> str | None:
    """Why another model may serve the request after ``error``; ``None`` if it may not."""
    if not request.awaits_reply:
        return None
    reason = _BY_CODE.get(error.code)
    if isinstance(error, BackendError):
        may_repeat = request.losses <= _MOST_LOSSES and not isinstance(error, InvalidReply)
        return "failed" if may_repeat else None
    if not isinstance(error, (CapacityError, ClientError)):
        return None
    return None if reason == "waiting" and meaning.fallback_after_seconds is None else reason


def _answer(request: ProxiedRequest, error: ProxyError | None) -> None:
    """Answer with the error of the request's own model: as its engine wrote it, if it did."""
    if isinstance(error, PromptTooLong) and not request.begun:
        request.backend_fields = b""
        request.write_whole(*error.reply)
        request.end()
    elif error is not None:
        raise error


def _as_field(name: str) -> bytes:
    """``name`` in a header field; characters beyond ASCII are escaped."""
    return name.encode("ascii", "backslashreplace").replace(b"\r", b"").replace(b"\n", b"")
