"""The server of the state that replicas share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["check_state"]

_SUBJECT = "STATE_URL"
_OLDEST = (6, 2)
_SLOW_SECONDS = 0.02  # of one exchange; limits are exchanged ten times a second, and sooner


def check_state(settings: Settings) -> Iterator[Finding]:
    """Findings about the server of STATE_URL; none without it."""
    url, prefix = settings.state_url, settings.state_prefix
    if url is None:
        return
    from inference_engine_proxy_server.state.inspection import ServerUnreachableError, inspect_server

    try:
        version, seconds, refusal = asyncio.run(inspect_server(url, prefix))
    except ServerUnreachableError as error:
        problem = f"{url} cannot be used: {error}."
        remedy = "Start the server, or correct the URL. Until then every replica has limits and budgets of its own."
        yield Finding("state_unreachable", Severity.WARNING, _SUBJECT, problem, remedy)
        return
    if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
        problem = f"The server has version {version}, and Redis 6.2, Valkey 7.2 or a newer one is needed."
        yield Finding("state_too_old", Severity.WARNING, _SUBJECT, problem, "Install a newer server.")
    if refusal is not None:
        problem = f"The server refuses what the proxy needs: {refusal}."
        remedy = f"Give the user of the URL the permissions in docs/shared-state.md, for keys and channels {prefix}:*."
        yield Finding("state_refuses", Severity.WARNING, _SUBJECT, problem, remedy)
    if seconds > _SLOW_SECONDS:
        problem = f"An exchange with the server takes {seconds * 1000:.0f} ms."
        remedy = "Use a server in the same data center: limits are less exact when exchanges take long."
        yield Finding("state_slow", Severity.WARNING, _SUBJECT, problem, remedy)
