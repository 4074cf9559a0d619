"""Checks that the names in the fleet file are unambiguous, and lead to models."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from inference_engine_proxy_server.config.fleet import ModelConfig
from inference_engine_proxy_server.config.values import closest_name

__all__ = ["problem_with_names"]


def problem_with_names(
    models: Mapping[str, ModelConfig], default_model: str | None, listed: Collection[str]
) -> str | None:
    """The first problem, with its place in the file; ``None`` when there is none.

    Args:
        models: the file's models.
        default_model: the file's model for requests that name none.
        listed: the models that the file's backends list.
    """
    aliases: dict[str, str] = {}
    for name, config in models.items():
        for at, alias in enumerate(config.aliases):
            reason = _problem_with_alias(alias, name, models, aliases, listed)
            if reason is not None:
                return f"models.{name}.aliases.{at}: {alias} {reason}"
            aliases[alias] = name
    for name, config in models.items():
        if config.serves_as is not None:
            reason = _problem_with_target(name, models, aliases, listed)
            if reason is not None:
                return f"models.{name}.serves_as: {reason}"
        for at, fallback in enumerate(config.fallbacks):
            if fallback == name or fallback in config.fallbacks[:at]:
                what = "the model itself" if fallback == name else "listed twice"
                return f"models.{name}.fallbacks.{at}: {fallback} is {what}"
    if default_model is None or default_model in models or default_model in listed or default_model in aliases:
        return None
    return f"default_model: {_unknown(default_model, [*models, *listed, *aliases])}"


def _problem_with_alias(
    alias: str,
    name: str,
    models: Mapping[str, ModelConfig],
    aliases: Mapping[str, str],
    listed: Collection[str],
) -> str | None:
    if alias == name:
        return "is the name of the model itself"
    if alias in models:
        return "is also the name of a model in this file"
    if alias in listed:
        return "is also a model that a backend in this file lists"
    if alias in aliases:
        other = aliases[alias]
        return "is listed twice" if other == name else f"is also an alias of {other}"
    return None


def _problem_with_target(
    name: str, models: Mapping[str, ModelConfig], aliases: Mapping[str, str], listed: Collection[str]
) -> str | None:
    passed = [name]
    while (target := models[passed[-1]].serves_as) is not None:
        if target in passed:
            return f"{' serves as '.join([*passed, target])}, which is a circle"
        if target not in models:
            if target in listed:
                return None
            if target in aliases:
                return f"{target} is an alias; name its model, {aliases[target]}"
            return _unknown(target, [*models, *listed])
        passed.append(target)
    return None


def _unknown(name: str, known: Collection[str]) -> str:
    close = closest_name(name, known, min_similarity=0.6)
    meant = f"; did you mean {close}?" if close else f"; if a backend reports it, add '{name}: {{}}' below models"
    return f"{name} is not a model in this file{meant}"
