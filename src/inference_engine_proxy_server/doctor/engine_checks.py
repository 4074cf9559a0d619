"""How an engine should be started behind this proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.doctor.probe import Probe, ProbeError

__all__ = ["check_engine"]


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
    if settings.llamacpp_keep_alive:
        yield Finding(
            "http_threads",
            Severity.NOTE,
            subject,
            "LLAMACPP_KEEP_ALIVE is true, so each idle connection occupies one of its HTTP threads for 5 s.",
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
