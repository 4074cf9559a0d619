"""The names that the operator defines, compiled: which model each means, and what changes in its requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from inference_engine_proxy_server.config.fleet import ModelConfig, ParametersConfig
from inference_engine_proxy_server.models.rewriting import Rewriting

__all__ = ["EMPTY", "DefaultModel", "Fallback", "Meaning", "ModelCatalog", "NamedModel"]


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that serves requests if another one cannot.

    Attributes:
        name: its name in the fleet file.
        model: the name by which engines know it.
        rewriting: what changes in the requests that it gets.
    """

    name: str
    model: str
    rewriting: Rewriting


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name means.

    Attributes:
        model: the name by which engines know the model.
        rewriting: what changes in the request.
        fallbacks: the models that serve the request if this one cannot, in this order.
        fallback_after_seconds: how long the request waits for this one if there are fallbacks; ``None``: as usual.
    """

    model: str
    rewriting: Rewriting
    fallbacks: Sequence[Fallback]
    fallback_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class NamedModel(Meaning):
    """The meaning of a name in requests.

    Attributes:
        permitted_by: the names one of which a limited key must have, apart from the name itself.
        is_listed: whether the list of models has the name.
    """

    permitted_by: tuple[str, ...]
    is_listed: bool


@dataclass(frozen=True, slots=True)
class DefaultModel(Meaning):
    """The meaning of a request that names no model.

    Attributes:
        name: the name that it is taken to have.
    """

    name: str


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Names with any text in place of each ``*`` of ``text``."""

    text: str
    named: NamedModel

    @property
    def length(self) -> int:
        """Its characters apart from ``*``."""
        return len(self.text.replace("*", ""))

    def matches(self, name: str) -> bool:
        """Whether ``name`` is such a name. Takes linear time, unlike a regular expression: clients choose names."""
        start, *middle, end = self.text.split("*")
        if not name.startswith(start) or not name.endswith(end) or len(name) < len(start) + len(end):
            return False
        at, last = len(start), len(name) - len(end)
        for part in middle:
            at = name.find(part, at, last)
            if at < 0:
                return False
            at += len(part)
        return True


class ModelCatalog:
    """An immutable catalog.

    Args:
        models: the fleet file's models; their names have been checked.
        default_model: the model of requests that name none; ``None`` for none.

    Attributes:
        by_name: the meanings of names, without patterns.
        models: every model that the file names, as engines know it, also one whose requests stay as they are.
        default: the meaning of a request without a model; ``None`` for none.
    """

    def __init__(self, models: Mapping[str, ModelConfig], default_model: str | None = None) -> None:
        by_name: dict[str, NamedModel] = {}
        patterns: list[_Pattern] = []
        for name, config in models.items():
            model, layers = _chain(name, models)
            fallbacks = _fallbacks(name, models)
            renamed = (model, Rewriting.of(layers, model), *fallbacks)
            if name != model:
                by_name[name] = NamedModel(*renamed, permitted_by=(), is_listed=True)
            elif layers or config.fallbacks:
                own = Rewriting.of(layers, None)
                by_name[name] = NamedModel(model, own, *fallbacks, permitted_by=(), is_listed=False)
            for alias in config.aliases:
                if "*" in alias:
                    named = NamedModel(*renamed, permitted_by=(alias, name), is_listed=False)
                    patterns.append(_Pattern(alias, named))
                else:
                    is_listed = not config.hidden_aliases
                    by_name[alias] = NamedModel(*renamed, permitted_by=(name,), is_listed=is_listed)
        self.by_name: Mapping[str, NamedModel] = MappingProxyType(by_name)
        self.models = tuple(dict.fromkeys(_chain(name, models)[0] for name in models))
        # The pattern with most text is the most specific one. Sorting keeps the file's order among equals.
        self._patterns = sorted(patterns, key=lambda pattern: -pattern.length)
        self.default = None if default_model is None else _default(default_model, models)

    @property
    def default_name(self) -> str | None:
        """The name that a request without a model is taken to have; ``None`` if there is no default."""
        return None if self.default is None else self.default.name

    @property
    def default_model(self) -> str | None:
        """The engines' name for the model of requests that name none; ``None`` if there is no default."""
        return None if self.default is None else self.default.model

    @property
    def is_empty(self) -> bool:
        """Whether nothing is defined, so that no request changes."""
        return not self.by_name and not self._patterns and self.default is None

    @property
    def has_patterns(self) -> bool:
        """Whether names may have a meaning that are not in ``by_name``."""
        return bool(self._patterns)

    def find(self, name: str, is_served: Callable[[str], bool]) -> NamedModel | None:
        """The meaning of ``name``; ``None`` if requests for it stay as they are.

        Args:
            is_served: whether a backend serves a model of this name. Patterns do not apply to such names.
        """
        found = self.by_name.get(name)
        if found is None and self._patterns and not is_served(name):
            pattern = next((one for one in self._patterns if one.matches(name)), None)
            return None if pattern is None else pattern.named
        return found

    def permitting_names(self, name: str, is_served: Callable[[str], bool]) -> tuple[str, ...]:
        """The names one of which a limited key must have to use ``name``."""
        found = self.find(name, is_served)
        return (name,) if found is None else (name, *found.permitted_by)

    def listed(self) -> Iterator[tuple[str, NamedModel]]:
        """The names that the list of models has, besides those of engines."""
        return ((name, named) for name, named in self.by_name.items() if named.is_listed)

    def hides(self, name: str) -> bool:
        """Whether ``name``, if a backend serves a model of this name, means another model here."""
        found = self.by_name.get(name)
        return found is not None and found.model != name


EMPTY = ModelCatalog(MappingProxyType({}))
"""A catalog without any names."""


def _chain(name: str, models: Mapping[str, ModelConfig]) -> tuple[str, list[ParametersConfig]]:
    """The model that ``name`` leads to, and the parameters of all entries on the way, the model's own first."""
    layers: list[ParametersConfig] = []
    while True:
        config = models.get(name)
        if config is not None and config.parameters not in (None, ParametersConfig()):
            layers.insert(0, config.parameters)
        if config is None or config.serves_as is None:
            return name, layers
        name = config.serves_as


def _fallbacks(name: str, models: Mapping[str, ModelConfig]) -> tuple[Sequence[Fallback], float | None]:
    """The fallbacks of ``name``, or else of the model that it serves as; and the wait before the first one."""
    while (config := models.get(name)) is not None and not config.fallbacks and config.serves_as is not None:
        name = config.serves_as
    if config is None:
        return (), None
    return tuple(_fallback(one, models) for one in config.fallbacks), config.fallback_after_seconds


def _fallback(name: str, models: Mapping[str, ModelConfig]) -> Fallback:
    model, layers = _chain(_entry_of(name, models), models)
    return Fallback(name, model, Rewriting.of(layers, model))


def _default(name: str, models: Mapping[str, ModelConfig]) -> DefaultModel:
    entry = _entry_of(name, models)
    model, layers = _chain(entry, models)
    return DefaultModel(model, Rewriting.of(layers, model), *_fallbacks(entry, models), name=name)


def _entry_of(name: str, models: Mapping[str, ModelConfig]) -> str:
    """The name of the entry that has ``name`` as an alias; ``name`` itself if there is none."""
    return next((one for one, config in models.items() if name in config.aliases), name)
