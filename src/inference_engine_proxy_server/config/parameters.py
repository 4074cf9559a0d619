"""Parameters of requests as the fleet file writes them: nested mappings, or names with dots, become paths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

__all__ = ["ParameterPath", "as_parameters", "conflict_between", "is_within", "name_of", "paths_named"]

ParameterPath = tuple[str, ...]
"""The names of the members that lead to a parameter, such as ``("chat_template_kwargs", "enable_thinking")``."""

# llama.cpp names some parameters with a dot.
_WITH_DOT = "speculative."

_NOT_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "model": "use 'serves_as' or 'aliases'",
        "stream": "clients can only read the kind of reply that they ask for",
        "messages": "it is the prompt",
        "prompt": "it is the prompt",
        "input": "it is the prompt",
        "previous_response_id": "it names the client's conversation",
        "system": "use 'system_prompt'",
        "instructions": "use 'system_prompt'",
    }
)


def name_of(path: ParameterPath) -> str:
    """``path`` as text."""
    return ".".join(path)


def is_within(path: ParameterPath, other: ParameterPath) -> bool:
    """Whether ``path`` is ``other``, or below it."""
    return path[: len(other)] == other


def as_parameters(value: Mapping[object, object]) -> dict[ParameterPath, object]:
    """The values in a mapping by their paths; a value is JSON, but not a mapping with members.

    Raises:
        ValueError: a name or a value is not that of a parameter, or a parameter is given twice.
    """
    found: dict[ParameterPath, object] = {}
    for path, leaf in _leaves(value, ()):
        _check_path(path)
        for other in found:
            if is_within(path, other) or is_within(other, path):
                raise ValueError(f"{name_of(path)} is given twice")
        found[path] = leaf
    return found


def paths_named(names: Iterable[str]) -> tuple[ParameterPath, ...]:
    """The paths of parameters that are named with dots.

    Raises:
        ValueError: a name is empty, or is not that of a parameter.
    """
    paths = tuple(dict.fromkeys(map(_path_of, names)))
    for path in paths:
        _check_path(path)
    return paths


def conflict_between(
    fixed: Iterable[ParameterPath], defaults: Iterable[ParameterPath], removed: Iterable[ParameterPath]
) -> str | None:
    """Why these parameters cannot be set, given a default, and removed by one entry; ``None`` when they can.

    A mapping may be removed although parameters in it are set: the client's other parameters in it are then dropped.
    """
    given = {**dict.fromkeys(defaults, "default"), **dict.fromkeys(fixed, "set")}
    for path in defaults:
        for other in fixed:
            if is_within(path, other) or is_within(other, path):
                return f"{name_of(path)} is in 'set' and in 'default'; keep one of them"
    for path in removed:
        for other, place in given.items():
            if is_within(path, other):
                return f"{name_of(path)} is in 'remove' and in '{place}'; keep one of them"
    return None


def _leaves(value: Mapping[object, object], above: ParameterPath) -> Iterator[tuple[ParameterPath, object]]:
    for name, inner in value.items():
        if not isinstance(name, str):
            raise ValueError(f"the name {name} must be text: put it in quotes")  # noqa: TRY004 - pydantic wants it
        path = above + _path_of(name)
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, path)
        else:
            _check_json(inner, path)
            yield path, inner


def _path_of(name: str) -> ParameterPath:
    path = (name,) if name.startswith(_WITH_DOT) else tuple(name.split("."))
    if not all(path):
        raise ValueError(f"{name!r} is not the name of a parameter")
    return path


def _check_path(path: ParameterPath) -> None:
    reason = _NOT_PARAMETERS.get(path[0])
    if reason is not None:
        raise ValueError(f"{name_of(path)} cannot be changed here: {reason}")


def _check_json(value: object, path: ParameterPath) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_json(inner, (*path, str(name)))
    elif isinstance(value, list):
        for inner in value:
            _check_json(inner, path)
    elif value is None:
        raise ValueError(f"{name_of(path)} must have a value; to remove a parameter, list it under 'remove'")
    elif not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name_of(path)} must be text, a number, true or false, a list or a mapping")
