"""Requests whose replies say where their time went, in the header ``Server-Timing``."""

from __future__ import annotations

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest

__all__ = ["TimedRequest"]


class TimedRequest(ProxiedRequest):
    """A request to a backend that tells its client how long it waited until its reply began.

    ``queue`` is the time in the proxy's queue; ``backend`` is the rest, from the complete request to the beginning of
    the reply (of a stream: to its first event), with all attempts. Both are in milliseconds (W3C Server Timing).
    """

    __slots__ = ()

    def _section(self, status: int, reason: bytes, fields: bytes, framing: bytes) -> bytes:
        if self.backend is not None and not self.has_only_comments:
            queue, total = self.queue_seconds * 1000, (self._connection.clock() - self.started_at) * 1000
            attempts = b', attempts;desc="%d"' % self.attempts if self.attempts > 1 else b""
            framing += b"server-timing: queue;dur=%.1f, backend;dur=%.1f%b\r\n" % (queue, total - queue, attempts)
        return super()._section(status, reason, fields, framing)
