"""Finds the engines, and tells which one a backend is.

Engines come from the modules beside this one and from the entry point group
``inference_engine_proxy_server.backends`` of every installed package. Who may claim a provider (an ``owned_by``):

* two engines of this package claiming the same one is a mistake in it, and raises;
* an entry point wins over an engine of this package: it was installed on purpose;
* of two entry points the first by name wins, and the other one's claim is logged.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType
from typing import TypeGuard

from inference_engine_proxy_server import backends
from inference_engine_proxy_server.backends.base import BaseBackend, Get, UnreadableState, parse_models
from inference_engine_proxy_server.backends.openai import OpenAIBackend

__all__ = ["ENTRY_POINT_GROUP", "Engines", "discover_engines", "identify"]

ENTRY_POINT_GROUP = "inference_engine_proxy_server.backends"

_log = logging.getLogger(__name__)

Engine = type[BaseBackend]


@dataclass(frozen=True, slots=True)
class Engines:
    """The known engines.

    Attributes:
        by_provider: each ``owned_by`` value, and each entry point's name, to the engine it means.
        fallback: the engine to assume for a server whose ``owned_by`` means none of them.
    """

    by_provider: Mapping[str, Engine]
    fallback: Engine


def discover_engines(package: ModuleType = backends) -> Engines:
    """Find every engine in the modules of ``package`` and among the installed entry points.

    An entry point that cannot be loaded, or is no engine, is logged and left out.

    Raises:
        ValueError: two engines of ``package`` claim the same provider.
    """
    by_provider: dict[str, Engine] = {}
    for engine in _engines_in(package):
        for provider in engine.providers:
            first = by_provider.setdefault(provider, engine)
            if first is not engine:
                raise ValueError(f"{first} and {engine} both claim the provider {provider!r}")
    return Engines(MappingProxyType(by_provider | _installed_engines()), fallback=OpenAIBackend)


async def identify(engines: Engines, get: Get) -> Engine | None:
    """Which engine a backend is, by the first ``owned_by`` of ``GET /v1/models`` that means one.

    The fallback when the list names no known owner (or is empty), and when the list is refused (a 4xx that says
    nothing of later, or 501): a wrong or missing key hides what it is, and it works all the same. ``None`` when it
    cannot be known yet: it is loading (503), troubled (another 5xx), told to wait (408, 425, 429), elsewhere
    (3xx), or not readable; ask again later.

    Raises:
        OSError, TimeoutError: there was no answer.
    """
    try:
        reply = await get("/v1/models")
        if reply.status == 200:
            owners = [model.get("owned_by") for model in parse_models(reply.body)]
            known = (engines.by_provider.get(owner) for owner in owners if isinstance(owner, str))
            return next(filter(None, known), engines.fallback)
    except UnreadableState:
        return None
    return engines.fallback if _is_lasting_refusal(reply.status) else None


def _is_lasting_refusal(status: int) -> bool:
    return status == 501 or (400 <= status < 500 and status not in (408, 425, 429))


def _engines_in(package: ModuleType) -> Iterator[Engine]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        # An engine that one module imports from another is yielded twice; it is the same engine.
        yield from filter(_is_engine, vars(module).values())


def _installed_engines() -> dict[str, Engine]:
    by_provider: dict[str, Engine] = {}
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: (entry.name, entry.value)):
        engine = _load(entry_point)
        if engine is None:
            continue
        for provider in dict.fromkeys((entry_point.name, *engine.providers)):
            first = by_provider.setdefault(provider, engine)
            if first is not engine:
                _log.warning("%s is already claimed by %s, so %s is not used for it", provider, first, engine)
    return by_provider


def _load(entry_point: EntryPoint) -> Engine | None:
    try:
        engine: object = entry_point.load()
    except Exception:  # A stranger's module may raise anything at import, and must not stop the proxy.
        _log.exception("the engine %r (%s) cannot be loaded", entry_point.name, entry_point.value)
        return None
    if not _is_engine(engine):
        _log.error("the engine %r (%s) is not a complete subclass of BaseBackend", entry_point.name, entry_point.value)
        return None
    return engine


def _is_engine(value: object) -> TypeGuard[Engine]:
    return inspect.isclass(value) and issubclass(value, BaseBackend) and not inspect.isabstract(value)
