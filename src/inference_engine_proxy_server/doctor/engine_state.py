"""What a backend reports of itself, read by the class of its engine, as the proxy reads it."""

from __future__ import annotations

import asyncio
import math

from inference_engine_proxy_server.backends.base import Thresholds
from inference_engine_proxy_server.backends.probe import Probe as EngineProbe
from inference_engine_proxy_server.backends.registry import Engines, identify
from inference_engine_proxy_server.backends.replies import Reply
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.probe import Probe, ProbeError
from inference_engine_proxy_server.fleet.drift import Replica, replicas_of
from inference_engine_proxy_server.fleet.serving import Serving

__all__ = ["fetch_replicas"]

_NEVER_BUSY = Thresholds(math.inf, math.inf)


def fetch_replicas(config: BackendConfig, probe: Probe, engines: Engines) -> list[Replica]:
    """The models of a backend, to compare them with those of others; empty if it does not report them now."""

    async def get(path: str, json_body: bytes | None = None) -> Reply:
        try:
            reply = probe.get(path, json_body)  # blocks, but nothing else runs in this event loop
        except ProbeError as error:
            raise OSError(str(error)) from error
        return Reply(reply.status, reply.body, reply.fields)

    async def fetch() -> list[Replica]:
        engine = engines.by_provider.get(config.engine) if config.engine else await identify(engines, EngineProbe(get))
        if engine is None:
            return []
        state = await engine(config.url, get, _NEVER_BUSY).fetch_state()
        if state.models is None:
            return []
        name = next(iter((*engine.providers, engine.__name__)))
        return list(replicas_of(config.url, name, Serving.of(state.models, state, config), config))

    try:
        return asyncio.run(fetch())
    except Exception:  # besides the documented ones: what an engine class of another package raises; the proxy logs it
        return []
