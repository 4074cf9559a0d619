"""Rules about parameters, and how those of several entries are combined. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from inference_engine_proxy_server.config.fleet import ParametersConfig
from inference_engine_proxy_server.config.parameters import ParameterPath, is_within
from inference_engine_proxy_server.models.dialects import EFFORT, LIMIT, LIMITS, Dialect

__all__ = ["Kind", "Rule", "Rules", "combined", "efforts_in", "in_dialect", "json_of", "stated_effort"]


class Kind(Enum):
    """What a rule does with its parameter."""

    SET = "set"
    DEFAULT = "default"
    REMOVE = "remove"


class Rule(NamedTuple):
    """What happens to one parameter.

    Attributes:
        value: JSON; empty if the parameter is removed.
        unless: parameters beside it, any of which makes a default unnecessary.
    """

    kind: Kind
    value: bytes = b""
    unless: tuple[str, ...] = ()


Rules = Mapping[ParameterPath, Rule]
"""Rules by the parameter they are about."""

_REMOVED = Rule(Kind.REMOVE)


def json_of(value: object) -> bytes:
    """``value`` as it is written into bodies."""
    return json.dumps(value, separators=(",", ":")).encode()


def efforts_in(layers: Iterable[ParametersConfig]) -> set[str]:
    """The efforts that have a meaning."""
    return {effort for layer in layers for effort in layer.reasoning_efforts}


def combined(layers: Sequence[ParametersConfig], effort: str | None = None) -> dict[ParameterPath, Rule]:
    """The rules for requests with this effort.

    Args:
        layers: the rules of a later entry replace those of earlier ones about the same parameter.
        effort: of the request; ``None`` if it has none, or one without a meaning.
    """
    rules: dict[ParameterPath, Rule] = {}
    meant: str | Mapping[ParameterPath, object] | None = None
    for layer in layers:
        for path in layer.removed:
            _put(rules, path, _REMOVED)
        for path, value in layer.defaults.items():
            _put(rules, path, Rule(Kind.DEFAULT, json_of(value)))
        for path, value in layer.fixed.items():
            _put(rules, path, Rule(Kind.SET, json_of(value)))
        meaning = None if effort is None else layer.reasoning_efforts.get(effort)
        if meaning is not None:
            meant = meaning
            for path, value in {} if isinstance(meaning, str) else meaning.items():
                _put(rules, path, Rule(Kind.SET, json_of(value)))
    if isinstance(meant, str):
        _put(rules, EFFORT, Rule(Kind.SET, json_of(meant)))
    elif meant is not None and EFFORT not in meant:
        _put(rules, EFFORT, _REMOVED)
    return rules


def _put(rules: dict[ParameterPath, Rule], path: ParameterPath, rule: Rule) -> None:
    """Add a rule, in place of those that it contradicts."""
    for other in list(rules):
        is_mapping_removed = other != path and rules[other].kind is Kind.REMOVE
        if is_within(other, path) or (is_within(path, other) and not is_mapping_removed):
            del rules[other]
    rules[path] = rule


def stated_effort(rules: Rules, kind: Kind) -> str | None:
    """The effort that the rules set, or have as a default; ``None`` if they do not."""
    rule = rules.get(EFFORT)
    if rule is None or rule.kind is not kind:
        return None
    value = json.loads(rule.value)
    return value if isinstance(value, str) else None


def in_dialect(rules: Rules, dialect: Dialect) -> dict[ParameterPath, Rule]:
    """The rules with the names that ``dialect`` has for the length limit and the effort."""
    found: dict[ParameterPath, Rule] = {}
    for path, rule in rules.items():
        if path == EFFORT:
            _put(found, dialect.effort, rule)
        elif path != (LIMIT,):
            found[path] = rule
    limit = rules.get((LIMIT,))
    if limit is None or (dialect.limit,) in found:
        return found
    others = tuple(name for name in LIMITS if name != dialect.limit and (name,) not in found)
    if limit.kind is Kind.DEFAULT:
        return found | {(dialect.limit,): limit._replace(unless=others)}
    return found | {(dialect.limit,): limit} | dict.fromkeys([(name,) for name in others], _REMOVED)
