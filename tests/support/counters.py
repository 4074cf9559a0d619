"""Reads the counters of a proxy."""

from __future__ import annotations

from support.http_client import send
from support.running_proxy import RunningProxy

__all__ = ["counted"]


async def counted(proxy: RunningProxy, name: str) -> dict[str, float]:
    """The values of a counter with one label by the label's value, without those that are 0."""
    page = (await send(proxy.url, "/metrics")).body.decode()
    lines = [line for line in page.splitlines() if line.startswith(name + "{")]
    counts = {line.split('"')[1]: float(line.split()[-1]) for line in lines}
    return {label: count for label, count in counts.items() if count}
