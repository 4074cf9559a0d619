"""Comments for clients whose stream has not begun for long, so that neither they nor a proxy in between give up.

The first comment commits the reply to status 200 before an engine has answered, as :mod:`~.queue_updates` do. The
request can still be retried on another backend; a later error is an event in the stream.
"""

from __future__ import annotations

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest

__all__ = ["send_heartbeat"]

# A bare colon is valid, too, but some clients expect a text. Without the blank line, clients that split the stream at
# blank lines would take the comment for the beginning of the first event.
_HEARTBEAT = b": keep-alive\n\n"


def send_heartbeat(request: ProxiedRequest) -> None:
    """Send a comment to the client of ``request`` if it waits for the first event of a stream, or at a seam."""
    source = request.source
    is_answered = source is not None and not source.is_unanswered
    if request.awaits_reply and not is_answered and request.takes_comments:
        request.send_comment(_HEARTBEAT)
