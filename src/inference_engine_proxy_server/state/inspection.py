"""One look at the server from outside a running proxy: whether it answers, how fast, and what it permits."""

from __future__ import annotations

import time
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from inference_engine_proxy_server.config.state_url import StateUrl
from inference_engine_proxy_server.state.redis_client import REDIS_ERRORS, make_client

__all__ = ["Inspection", "ServerUnreachableError", "inspect_server"]

_TRIES = 5
_WRITE = "redis.call('TIME') return redis.call('SET', KEYS[1], '1', 'PX', 1000)"  # what all scripts need


class ServerUnreachableError(Exception):
    """The server does not answer, or rejects the password; the text says why."""


class Inspection(NamedTuple):
    """What was found.

    Attributes:
        version: of Redis; Valkey reports the version that it is compatible with.
        seconds: of the quickest of some exchanges.
        refusal: why the server does not do what the proxy needs, such as a missing permission; ``None`` if it does.
    """

    version: str
    seconds: float
    refusal: str | None


async def inspect_server(url: StateUrl, prefix: str) -> Inspection:
    """Look at the server at ``url``, with keys that begin with ``prefix``.

    Raises:
        ServerUnreachableError: it cannot be used.
    """
    client = make_client(url)
    try:
        seconds = min([await _exchange_seconds(client) for _ in range(_TRIES)])
        return Inspection(await _version(client), seconds, await _refusal(client, prefix))
    except REDIS_ERRORS as error:
        raise ServerUnreachableError(str(error).rstrip(".") or "there is no answer") from error
    finally:
        await client.aclose()


async def _exchange_seconds(client: Redis) -> float:
    began = time.monotonic()
    await client.ping()
    return time.monotonic() - began


async def _version(client: Redis) -> str:
    try:
        return str((await client.info("server"))["redis_version"])
    except ResponseError:  # INFO is not permitted, and the proxy does not need it
        return ""


async def _refusal(client: Redis, prefix: str) -> str | None:
    try:
        await client.eval(_WRITE, 1, f"{prefix}:doctor")
        await client.publish(f"{prefix}:topic:doctor", "")
    except ResponseError as error:
        return str(error).rstrip(".")
    return None
