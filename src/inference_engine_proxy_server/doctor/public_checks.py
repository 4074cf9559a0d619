"""The way through the public address, with whatever proxies are in front, back to this proxy."""

from __future__ import annotations

import http.client
import math
import select
from collections.abc import Iterator

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.backend_checks import expiring, failure_finding
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.doctor.probe import Probe, ProbeError
from inference_engine_proxy_server.doctor.public_stream import PulseReading, read_pulse

__all__ = ["check_public"]

_WATCHED_SECONDS = 7.0  # the stream takes six
_LATE_SECONDS = 1.5  # a busy machine may delay events a little
_LIVENESS = "/livez"
_HEADER_BYTES = 16_000  # half of what the proxy accepts; NGINX accepts 8 KiB in one field by default
_BODY_BYTES = 2 * 2**20  # a long prompt or a picture; NGINX accepts 1 MiB by default
_EARLY_SECONDS = 0.5  # in which a proxy rejects a body for its stated length
_LOCAL_SECONDS = 3.0
_ANY = ("0.0.0.0", "::", "")  # noqa: S104 - listens nowhere


def check_public(
    url: str, settings: Settings, now: float, watched_seconds: float = _WATCHED_SECONDS
) -> Iterator[Finding]:
    """Findings about ``url``, by which clients reach the proxy.

    Args:
        url: base URL without ``/v1``.
        settings: of the proxy, which should be running.
        now: seconds since the epoch.
        watched_seconds: how long a stream is watched.
    """
    subject, probe = f"public address {url}", Probe(url)
    try:
        reply = probe.get(_LIVENESS)
        if reply.status != 200 or not isinstance(reply.json, dict) or reply.json.get("status") != "ok":
            problem = f"It answers GET {probe.path}{_LIVENESS} with {reply.status}, and not as this proxy does."
            remedy = "Correct the URL, or let the proxy in front forward all paths."
            yield Finding("public_no_proxy", Severity.ERROR, subject, problem, remedy)
            return
        yield from expiring(reply, subject, now)
        yield from _stream(subject, probe, settings, watched_seconds)
        yield from _connections(subject, probe)
        yield from _header(subject, probe)
        yield from _body(subject, probe, min(_BODY_BYTES, settings.max_request_body_bytes))
    except ProbeError as error:
        yield failure_finding(subject, "public", probe, error)


def _stream(subject: str, probe: Probe, settings: Settings, seconds: float) -> Iterator[Finding]:
    local = _local_reading(settings)
    reading = read_pulse(probe, seconds)
    if reading.status != 200:
        problem = f"It answers GET {probe.path}/dashboard/pulse with {reading.status}, so buffering cannot be examined."
        yield Finding("public_stream_refused", Severity.NOTE, subject, problem, "Let it through while the doctor runs.")
        return
    yield from _identity(subject, reading, local)
    yield from _delays(subject, reading, local, seconds)


def _identity(subject: str, reading: PulseReading, local: PulseReading | None) -> Iterator[Finding]:
    if local is None:
        problem = "No proxy answers at HOST and PORT of these settings, so that the doctor cannot compare the two."
        remedy = "Run the doctor where the proxy runs, with its settings."
        yield Finding("public_not_compared", Severity.NOTE, subject, problem, remedy)
    elif reading.instance and reading.instance != local.instance:
        problem = "It reaches another proxy than the one at HOST and PORT of these settings."
        remedy = "Correct the address in the proxy in front, or its DNS entry; with several proxies, ask again."
        yield Finding("public_other_proxy", Severity.ERROR, subject, problem, remedy)


def _delays(subject: str, reading: PulseReading, local: PulseReading | None, seconds: float) -> Iterator[Finding]:
    if reading.encoding:
        problem = f"A proxy in front compresses streams ({reading.encoding}), which delays tokens."
        remedy = "Exclude text/event-stream (NGINX: gzip off, or gzip_types without it)."
        yield Finding("public_compresses", Severity.WARNING, subject, problem, remedy)
    on_time = min((*reading.delays, *(local.delays if local else ())), default=0.0)
    late = max(reading.delays, default=math.inf) - on_time
    if late > _LATE_SECONDS:
        what = f"an event came {late:.1f} s late" if reading.delays else f"no event came within {seconds:g} s"
        problem = f"A proxy in front buffers streams: {what}, although there are two a second."
        remedy = (
            "Turn buffering off there (NGINX: proxy_buffering off and proxy_http_version 1.1; Apache: ProxyPass with "
            "flushpackets=on)."
        )
        yield Finding("public_buffers", Severity.ERROR, subject, problem, remedy)


def _local_reading(settings: Settings) -> PulseReading | None:
    """The first event of the proxy itself; ``None`` if it does not run here."""
    host = "127.0.0.1" if settings.host in _ANY else settings.host
    scheme = "https" if settings.tls_cert_file else "http"
    authority = f"[{host}]" if ":" in host else host
    local = Probe(f"{scheme}://{authority}:{settings.port}", seconds=_LOCAL_SECONDS, verifies=False)
    try:
        reading = read_pulse(local, _LOCAL_SECONDS, lambda so_far: bool(so_far.delays))
    except ProbeError:
        return None
    return reading if reading.instance else None


def _connections(subject: str, probe: Probe) -> Iterator[Finding]:
    with probe.connection() as connection:
        connection.request("GET", probe.path + _LIVENESS)
        reply = connection.getresponse()
        reply.read()
        closes = reply.version < 11 or reply.will_close
    if closes:
        problem = "It closes the connection after each reply, so each request of a client opens a new one."
        remedy = "Enable HTTP/1.1 with keep-alive, or HTTP/2, for clients (NGINX: keepalive_timeout above 0)."
        yield Finding("public_closes_connections", Severity.NOTE, subject, problem, remedy)


def _header(subject: str, probe: Probe) -> Iterator[Finding]:
    with probe.connection() as connection:
        connection.request("GET", probe.path + _LIVENESS, headers={"x-doctor": "x" * _HEADER_BYTES})
        status = connection.getresponse().status
    if status != 200:
        problem = f"It rejects a header field of {_HEADER_BYTES:,} bytes with {status}; the proxy itself accepts it."
        remedy = "Raise the limit there (NGINX: large_client_header_buffers 4 32k)."
        yield Finding("public_header_limit", Severity.NOTE, subject, problem, remedy)


def _body(subject: str, probe: Probe, size: int) -> Iterator[Finding]:
    with probe.connection() as connection:
        connection.putrequest("POST", probe.path + _LIVENESS)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(size))
        connection.endheaders()
        try:
            if not select.select([connection.sock], [], [], _EARLY_SECONDS)[0]:
                connection.send(b" " * size)
            status = connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):  # rejected while the body was sent
            status = 413
    if status == 413:
        problem = f"It rejects a body of {size:,} bytes, which the proxy accepts: long prompts and pictures fail."
        remedy = "Raise the limit there to MAX_REQUEST_BODY_BYTES (NGINX: client_max_body_size)."
        yield Finding("public_body_limit", Severity.WARNING, subject, problem, remedy)
