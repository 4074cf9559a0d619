"""Reads a stream of the proxy through an address, and notes when each event came."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inference_engine_proxy_server.doctor.probe import Probe

__all__ = ["PulseReading", "read_pulse"]

_PATH = "/dashboard/pulse"
_GZIP = 47  # zlib: window of any size, and a gzip or zlib header
_BLOCK = 65536


@dataclass(slots=True)
class PulseReading:
    """What came within a time.

    Attributes:
        status: of the reply.
        encoding: its ``Content-Encoding``; empty without one.
        instance: of the proxy; empty before the first event was complete.
        delays: for each complete event, the seconds from when it was made until it was complete here. If the two
            clocks differ, all are wrong by the same amount.
    """

    status: int
    encoding: str = ""
    instance: str = ""
    delays: list[float] = field(default_factory=list)


def read_pulse(
    probe: Probe, seconds: float, is_enough: Callable[[PulseReading], bool] = lambda _: False
) -> PulseReading:
    """Read for ``seconds``, or until ``is_enough``.

    Raises:
        ProbeError: there is no HTTP reply.
    """
    ends_at = time.monotonic() + seconds
    with probe.connection() as connection:
        connection.request("GET", probe.path + _PATH, headers={"accept-encoding": "gzip"})
        socket = connection.sock  # the connection forgets it if the reply ends with the connection
        socket.settimeout(seconds)
        try:
            reply = connection.getresponse()
        except TimeoutError:
            return PulseReading(200)  # the connection works, so something holds the reply back
        reading = PulseReading(reply.status, reply.headers.get("content-encoding", "").lower())
        if reply.status != 200:
            return reading
        unpack = zlib.decompressobj(_GZIP).decompress if reading.encoding == "gzip" else bytes
        text = b""
        while (left := ends_at - time.monotonic()) > 0 and not is_enough(reading):
            socket.settimeout(left)
            try:
                block = reply.read1(_BLOCK)
            except TimeoutError:
                break
            if not block:
                break
            *events, text = (text + unpack(block)).split(b"\n\n")
            for event in events:
                _take(reading, event)
        return reading


def _take(reading: PulseReading, event: bytes) -> None:
    snapshot: Any = None
    for line in event.splitlines():
        if line.startswith(b"data:"):
            try:
                snapshot = json.loads(line[5:])
            except ValueError:
                return
    if isinstance(snapshot, dict) and isinstance(snapshot.get("at"), float):
        reading.delays.append(time.time() - snapshot["at"])
        reading.instance = str(snapshot.get("instance", ""))
