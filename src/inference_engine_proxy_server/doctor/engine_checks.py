"""How an engine should be started behind this proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.doctor.probe import Probe, ProbeError

__all__ = ["check_engine"]

_IDLE_CONNECTIONS = 16  # delay /health by 10 s with llama.cpp's default number of HTTP threads (build 11549, 2 slots)
_SLOW_SECONDS = 1.0


def check_engine(
    subject: str, probe: Probe, models: Sequence[Mapping[str, Any]], settings: Settings
) -> Iterator[Finding]:
    """Findings about the options of an engine that answers.

    Args:
        models: the entries of its list of models.
    """
    owners = {entry.get("owned_by") for entry in models}
    if "llamacpp" in owners:
        yield from _llamacpp(subject, probe, settings)
    if "vllm" in owners and _status(probe, "/metrics") == 404:
        remedy = "Start vLLM without --disable-log-stats."
        yield _metrics_off(subject, remedy)


def _llamacpp(subject: str, probe: Probe, settings: Settings) -> Iterator[Finding]:
    if _status(probe, "/metrics") in (404, 501):
        yield _metrics_off(subject, "Start llama-server with --metrics.")
    if _slots(probe) == 1:
        yield Finding(
            "single_slot",
            Severity.WARNING,
            subject,
            "It has one slot, so it serves one request at a time.",
            "Start llama-server with --parallel, for example --parallel 4.",
        )
    if settings.llamacpp_keep_alive and _is_slow_beside_idle_connections(probe):
        yield Finding(
            "few_http_threads",
            Severity.WARNING,
            subject,
            f"With {_IDLE_CONNECTIONS} idle connections it takes over {_SLOW_SECONDS:g} s to answer /health.",
            "Start llama-server with --threads-http 64, or set LLAMACPP_KEEP_ALIVE to false.",
        )


def _metrics_off(subject: str, remedy: str) -> Finding:
    problem = "Its metrics are off, so the proxy knows only its own requests there."
    return Finding("metrics_off", Severity.WARNING, subject, problem, remedy)


def _status(probe: Probe, path: str) -> int | None:
    try:
        return probe.get(path).status
    except ProbeError:
        return None


def _slots(probe: Probe) -> int | None:
    try:
        found = probe.get("/props").json
    except ProbeError:
        return None
    slots = found.get("total_slots") if isinstance(found, dict) else None
    return slots if isinstance(slots, int) else None


def _is_slow_beside_idle_connections(probe: Probe) -> bool:
    with ExitStack() as stack:
        try:
            connections = [stack.enter_context(probe.connect()) for _ in range(_IDLE_CONNECTIONS)]
            for connection in connections:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: %b\r\n\r\n" % probe.host.encode())
            began_at = time.monotonic()
            probe.get("/health")
        except (OSError, ProbeError):
            return True
        return time.monotonic() - began_at > _SLOW_SECONDS
