"""Discovers the engines, and detects the engine of a backend.

Engines are the modules beside this one, and the entry points in the group ``inference_engine_proxy_server.backends`` of
every installed package. When several claim the same provider (an ``owned_by``):

* two engines of this package are a mistake, which raises;
* an entry point wins over an engine of this package, because it was installed on purpose;
* the first of two entry points by name wins, and the conflict is logged.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, ModuleType
from typing import TypeGuard

from inference_engine_proxy_server import backends
from inference_engine_proxy_server.backends.base import BaseBackend, ModelEntry, Probe, UnreadableState, parse_models
from inference_engine_proxy_server.backends.openai import OpenAIBackend

__all__ = ["ENTRY_POINT_GROUP", "Engines", "discover_engines", "identify"]

ENTRY_POINT_GROUP = "inference_engine_proxy_server.backends"

logger = logging.getLogger(__name__)

_MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

Engine = type[BaseBackend]


@dataclass(frozen=True, slots=True)
class Engines:
    """The known engines.

    Attributes:
        by_provider: engines by ``owned_by`` value, and by entry point name.
        fallback: for servers that no engine recognizes.
        recognizing: the engines that can recognize a backend without its ``owned_by``, in the order in which they are
            asked: first those of entry points, then those of this package by the names of their modules.
    """

    by_provider: Mapping[str, Engine]
    fallback: Engine
    recognizing: tuple[Engine, ...] = ()


def discover_engines(package: ModuleType = backends) -> Engines:
    """Find every engine in the modules of ``package`` and among the installed entry points.

    An entry point that cannot be loaded, or is not an engine, is logged and skipped.

    Raises:
        ValueError: two engines of ``package`` claim the same provider.
    """
    by_provider: dict[str, Engine] = {}
    found = tuple(_engines_in(package))
    for engine in found:
        for provider in engine.providers:
            first = by_provider.setdefault(provider, engine)
            if first is not engine:
                raise ValueError(f"{first} and {engine} both claim the provider {provider!r}")
    installed = _installed_engines()
    recognizing = dict.fromkeys(filter(_can_recognize, (*installed.values(), *found)))
    return Engines(MappingProxyType(by_provider | installed), OpenAIBackend, tuple(recognizing))


async def identify(engines: Engines, probe: Probe) -> Engine | None:
    """The engine of a backend: by the first ``owned_by`` of ``GET /v1/models`` that names one, else the first engine
    that recognizes the backend, else the fallback.

    A list that is rejected permanently (501, or a 4xx that is not about time) is like one without a known owner: a
    server may have no list, and with a wrong or missing key, requests still work. ``None`` when the engine is not known
    yet: the backend is loading (503), failing (another 5xx), asks to wait (408, 425, 429), redirects (3xx), or no
    engine recognizes it and its list is not readable; try again later.

    Raises:
        UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/v1/models``.
    """
    listing = await probe.list_models()
    fallback: Engine | None = engines.fallback
    if listing.status == 200:
        try:
            owner = _owner(engines, parse_models(listing.body))
        except UnreadableState:
            owner = fallback = None
        if owner is not None:
            return owner
    elif not _is_lasting_refusal(listing.status):
        return None
    for engine in engines.recognizing:
        if await _recognizes(engine, probe):
            return engine
    return fallback


def _owner(engines: Engines, models: Iterable[ModelEntry]) -> Engine | None:
    owners = (model.get("owned_by") for model in models)
    known = (engines.by_provider.get(owner) for owner in owners if isinstance(owner, str))
    return next((engine for engine in known if engine not in (None, engines.fallback)), None)


async def _recognizes(engine: Engine, probe: Probe) -> bool:
    try:
        return await engine.recognizes(probe)
    except _MISTAKES:  # of a third-party engine; the others must still be asked
        logger.exception("the engine %s failed to examine a backend", engine.__name__)
        return False


def _is_lasting_refusal(status: int) -> bool:
    return status == 501 or (400 <= status < 500 and status not in (408, 425, 429))


def _engines_in(package: ModuleType) -> Iterator[Engine]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        # An engine that one module imports from another is yielded twice; the second time has no effect.
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
                logger.warning("the provider %s belongs to %s, so %s is not used for it", provider, first, engine)
    return by_provider


def _load(entry_point: EntryPoint) -> Engine | None:
    try:
        engine: object = entry_point.load()
    except Exception:  # A third-party module may raise anything on import, and must not stop the proxy.
        logger.exception("the engine %r (%s) cannot be loaded", entry_point.name, entry_point.value)
        return None
    if not _is_engine(engine):
        logger.error(
            "the engine %r (%s) is not a complete subclass of BaseBackend", entry_point.name, entry_point.value
        )
        return None
    return engine


def _is_engine(value: object) -> TypeGuard[Engine]:
    if not inspect.isclass(value) or not issubclass(value, BaseBackend):
        return False
    return value.is_complete() and not inspect.isabstract(value)


def _can_recognize(engine: Engine) -> bool:
    return engine.recognizes.__func__ is not BaseBackend.recognizes.__func__  # type: ignore[attr-defined]
