"""The client of the server. It never retries by itself, and waits a second at most."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inference_engine_proxy_server.config.state_url import StateUrl

__all__ = ["CALL_SECONDS", "REDIS_ERRORS", "make_client"]

CALL_SECONDS = 1.0
"""The longest wait for an answer; also for a connection."""

REDIS_ERRORS = (RedisError, OSError, TimeoutError)
"""What a call may raise: no connection, no answer, a wrong password, missing permissions, a full memory."""


def make_client(url: StateUrl) -> Redis:
    """A client, which connects with its first call. Its replies are bytes."""
    return Redis.from_url(
        url.whole,
        protocol=2,  # the newer one has nothing that is needed here, and adds notifications of managed services
        retry=Retry(NoBackoff(), 0),
        socket_timeout=CALL_SECONDS,
        socket_connect_timeout=CALL_SECONDS,
        client_name="inference-proxy",
        driver_info=None,  # one command and one permission less
    )
