"""Compares the backends that serve the same model. Pure.

A client does not choose a backend, so the replicas of a model should answer alike. What most of them have in common is
taken as intended; without a majority, all values are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from inference_engine_proxy_server.backends.fingerprint import Fingerprint
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.difference import Aspect, Difference, Value
from inference_engine_proxy_server.fleet.serving import Serving, names_of

__all__ = ["Replica", "differences", "replicas_of"]

_NAMES = Aspect.NAMES.value


class Replica(NamedTuple):
    """One model on one backend.

    Attributes:
        url: of the backend.
        model: the name that the backend lists first.
        names: all names; ``None`` if the operator states them.
        engine: of the backend; ``None`` if unknown.
        fingerprint: what its engine reports.
        context: tokens of a prompt and its answer; ``None`` if unknown.
        may_differ: in what the operator expects it to differ.
    """

    url: str
    model: str
    names: frozenset[str] | None
    engine: str | None
    fingerprint: Fingerprint
    context: int | None
    may_differ: frozenset[str]


class _Reading(NamedTuple):
    """A value of an aspect, and its text."""

    value: object
    text: str


def replicas_of(url: str, engine: str | None, serving: Serving, config: BackendConfig) -> Iterator[Replica]:
    """The models of one backend."""
    is_stated = config.models is not None
    for entry in serving.models:
        model: str = entry["id"]
        yield Replica(
            url,
            model,
            None if is_stated else frozenset(names_of(entry)),
            engine,
            serving.fingerprint_of(model),
            serving.context_of(model),
            frozenset(config.may_differ),
        )


def differences(replicas: Iterable[Replica]) -> tuple[Difference, ...]:
    """The differences between replicas of equal names, by model; and replicas of one model without a common name."""
    listed = list(replicas)
    found = [
        difference
        for model, group in _groups(listed)
        if not _are_alike(group)
        for aspect, reading in _READINGS
        for difference in _compared(model, aspect, reading, group)
    ]
    return (*found, *_nameless(listed))


def _groups(replicas: Sequence[Replica]) -> Iterator[tuple[str, Sequence[Replica]]]:
    """The replicas of each name that several backends have; each group once, under the name that most list first."""
    by_name: dict[str, list[Replica]] = {}
    for replica in replicas:
        for name in replica.names or (replica.model,):
            by_name.setdefault(name, []).append(replica)
    seen = set()
    # Names that are listed first come before aliases.
    for name in sorted(by_name, key=lambda name: -sum(one.model == name for one in by_name[name])):
        group = by_name[name]
        identity = frozenset((one.url, one.model) for one in group)
        if len(group) > 1 and identity not in seen:
            seen.add(identity)
            yield name, group


def _are_alike(group: Sequence[Replica]) -> bool:
    """The usual case, found quickly in large fleets."""
    first = group[0]
    return all(
        one.fingerprint == first.fingerprint and one.context == first.context and one.names == first.names
        for one in group
    )


def _compared(
    model: str, aspect: Aspect, read: Callable[[Replica], _Reading | None], group: Sequence[Replica]
) -> Iterator[Difference]:
    by_value: dict[object, tuple[str, list[str]]] = {}
    for replica in group:
        reading = None if aspect.value in replica.may_differ else read(replica)
        if reading is not None:
            by_value.setdefault(reading.value, (reading.text, []))[1].append(replica.url)
    if aspect in (Aspect.VERSION, Aspect.TOKENIZER):
        engines = {replica.engine for replica in group}
        if len(engines) > 1:  # these cannot be compared between different engines
            return
    if len(by_value) > 1:
        yield _difference(model, aspect, by_value)


def _difference(model: str, aspect: Aspect, by_value: Mapping[object, tuple[str, list[str]]]) -> Difference:
    ranked = sorted(by_value.items(), key=lambda item: -len(item[1][1]))
    (most_common, (text, urls)), *others = ranked
    has_majority = 2 * len(urls) > sum(len(urls) for _, (_, urls) in ranked)
    shown = others if has_majority else ranked
    is_warning = aspect not in (Aspect.SLOTS, Aspect.VERSION)
    if aspect is Aspect.CONTEXT and has_majority:  # a longer context costs no request anything
        is_warning = any(_tokens(value) < _tokens(most_common) for value, _ in others)
    values = tuple(Value(text, tuple(urls)) for _, (text, urls) in shown)
    return Difference(model, aspect, is_warning, values, text if has_majority else None)


def _nameless(replicas: Sequence[Replica]) -> Iterator[Difference]:
    """Replicas with the same weights of which no name reaches all."""
    by_weights: dict[object, list[Replica]] = {}
    for replica in replicas:
        weights = replica.fingerprint.weights or replica.fingerprint.source
        if weights is not None and replica.names is not None and _NAMES not in replica.may_differ:
            by_weights.setdefault(weights, []).append(replica)
    for group in by_weights.values():
        if all(replica.names == group[0].names for replica in group):
            continue
        names: dict[str, set[str]] = {}
        for replica in group:
            names.setdefault(replica.url, set()).update(replica.names or ())
        if not set.intersection(*names.values()):
            by_value: dict[object, tuple[str, list[str]]] = {}
            for url, known in names.items():
                text = ", ".join(sorted(known))
                by_value.setdefault(text, (text, []))[1].append(url)
            yield _difference(group[0].model, Aspect.NAMES, by_value)


def _fact(read: Callable[[Replica], Any], form: str = "{}") -> Callable[[Replica], _Reading | None]:
    def reading(replica: Replica) -> _Reading | None:
        value = read(replica)
        return None if value is None else _Reading(value, form.format(value))

    return reading


def _names(replica: Replica) -> _Reading | None:
    return None if replica.names is None else _Reading(replica.names, ", ".join(sorted(replica.names)))


def _source(replica: Replica) -> _Reading | None:
    source = replica.fingerprint.source
    return None if source is None else _Reading(source.lower(), source)


_READINGS: Sequence[tuple[Aspect, Callable[[Replica], _Reading | None]]] = (
    (Aspect.WEIGHTS, _fact(lambda one: one.fingerprint.weights, "{!s}")),
    (Aspect.SOURCE, _source),
    (Aspect.TOKENIZER, _fact(lambda one: one.fingerprint.tokenizer)),
    (Aspect.TEMPLATE, _fact(lambda one: one.fingerprint.template)),
    (Aspect.CONTEXT, _fact(lambda one: one.context, "{:,}")),
    (Aspect.NAMES, _names),
    (Aspect.SLOTS, _fact(lambda one: one.fingerprint.slots)),
    (Aspect.VERSION, _fact(lambda one: one.fingerprint.version)),
)


def _tokens(value: object) -> int:
    return value if isinstance(value, int) else 0
