"""A difference between the replicas of a model, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Aspect", "Difference", "Value"]

_NAMED = 5  # backends in a sentence


class Aspect(Enum):
    """In what replicas can differ."""

    WEIGHTS = "weights"
    SOURCE = "source"
    TOKENIZER = "tokenizer"
    TEMPLATE = "template"
    CONTEXT = "context"
    NAMES = "names"
    SLOTS = "slots"
    VERSION = "version"


class Value(NamedTuple):
    """A value, as text, and the URLs of the backends that have it."""

    text: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the replicas of a model.

    Attributes:
        model: the model.
        aspect: in what they differ.
        is_warning: requests are served worse for it; otherwise it is only worth knowing.
        values: those that only a minority has; without a majority, all.
        usual: the value of the majority; ``None`` without one.
    """

    model: str
    aspect: Aspect
    is_warning: bool
    values: tuple[Value, ...]
    usual: str | None

    @property
    def urls(self) -> tuple[str, ...]:
        """The backends that have one of the :attr:`values`."""
        return tuple(url for value in self.values for url in value.urls)

    def sentence(self, names: Mapping[str, str]) -> str:
        """What is different, and what follows from that, as one sentence.

        Args:
            names: of backends, by URL.
        """
        words = _WORDS[self.aspect]
        parts = [f"{_listed(value.urls, names)} {_have(value.urls)} {words.value(value.text)}" for value in self.values]
        if self.usual is not None:
            parts.append(f"the others have {words.value(self.usual)}")
        parts[0] += f" for {self.model}"
        return f"{'; '.join(parts)}: {words.consequence}."

    @property
    def remedy(self) -> str:
        """What an operator should do, as one sentence."""
        return _WORDS[self.aspect].remedy.format(self.usual or "equally many")

    def as_json(self, names: Mapping[str, str]) -> dict[str, Any]:
        """The difference as a JSON object, with these names of backends by URL."""
        return {
            "model": self.model,
            "aspect": self.aspect.value,
            "severity": "warning" if self.is_warning else "note",
            "values": [{"value": one.text, "backends": [names[url] for url in one.urls]} for one in self.values],
            "usual": self.usual,
            "text": self.sentence(names),
            "remedy": self.remedy,
        }


class _Words(NamedTuple):
    pattern: str
    consequence: str
    remedy: str

    def value(self, text: str) -> str:
        return self.pattern.format(text)


_NOT_CONTINUED = "and broken streams are not continued between them"
_WORDS: Mapping[Aspect, _Words] = {
    Aspect.WEIGHTS: _Words(
        "weights of {}",
        f"answers depend on the backend, {_NOT_CONTINUED}",
        "Start all with the same model file, or give the other model another name.",
    ),
    Aspect.SOURCE: _Words(
        "the weights {}",
        f"answers may depend on the backend, {_NOT_CONTINUED}",
        "Start all with the same model, or give the other model another name.",
    ),
    Aspect.TOKENIZER: _Words(
        "the tokenizer {}",
        f"a prompt has other tokens there, {_NOT_CONTINUED}",
        "Start all with the same model file, converted by one version of llama.cpp's scripts.",
    ),
    Aspect.TEMPLATE: _Words(
        "the chat template {}",
        f"the model reads other prompts there, {_NOT_CONTINUED}",
        "Start all with the same model file and --chat-template.",
    ),
    Aspect.CONTEXT: _Words(
        "a context of {} tokens",
        "longer prompts have fewer backends",
        "Start every backend so that a request may have {} tokens (llama.cpp: --ctx-size, which may be divided by "
        "--parallel; vLLM: --max-model-len).",
    ),
    Aspect.NAMES: _Words(
        "the names {}",
        "requests reach only the backends that know the name",
        "Start the engines with one name (llama.cpp: --alias, vLLM: --served-model-name), or give the model aliases in "
        "the fleet file.",
    ),
    Aspect.SLOTS: _Words(
        "{} slots",
        "which is right if their hardware differs",
        "If it does not differ, start all with equal --parallel.",
    ),
    Aspect.VERSION: _Words(
        "version {} of the engine", "their answers may differ slightly", "Update the engines together."
    ),
}


def _have(urls: Sequence[str]) -> str:
    return "has" if len(urls) == 1 else "have"


def _listed(urls: Sequence[str], names: Mapping[str, str]) -> str:
    shown = [names[url] for url in urls[:_NAMED]]
    if len(urls) > _NAMED:
        shown.append(f"{len(urls) - _NAMED} more")
    return " and ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else shown[0]
