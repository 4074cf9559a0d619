"""The models that a backend serves, with their names and context lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from inference_engine_proxy_server.backends.base import Api, BackendState, ModelEntry, ModelNames, ModelStatus
from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.backends.fingerprint import Fingerprint
from inference_engine_proxy_server.config.fleet import BackendConfig

__all__ = ["Serving", "names_of"]

T = TypeVar("T")

_AWAKE = ModelStatus.AWAKE
_UNKNOWN = Fingerprint()
_IMPLIED_TAG = ":latest"


@dataclass(frozen=True, slots=True)
class Serving:
    """The models of one backend. They are kept while the backend is down.

    Attributes:
        models: entries for ``GET /v1/models``.
        model_ids: names of the models, aliases included.
        model_names: how the backend treats other names.
        contexts: tokens that a prompt and its answer may have together, by the names of the models that report it.
        only_context: the context of the backend's only model, whatever the name; ``None`` if it has several.
        fingerprints: what tells replicas of a model apart, by the names of the models that have one.
        only_fingerprint: that of the backend's only model, whatever the name; unknown if it has several.
        statuses: by name; a name without one is awake.
        best_status: of all its models.
        continued_apis: the APIs in which the backend continues an answer that begins with a given text.
        begun_answers: what its prompts have of such an answer, if that is a message.
        shows_replies_in_streams: whether the backend's replies can be assembled from streams.
        bounds_max_tokens: whether the backend rejects a request whose ``max_tokens`` exceeds its context.
        streams_usage_on_request: whether its streams report the tokens used only if the request asks for them.
    """

    models: tuple[ModelEntry, ...] = ()
    model_ids: frozenset[str] = frozenset()
    model_names: ModelNames = ModelNames.UNKNOWN
    contexts: Mapping[str, int] = field(default_factory=dict)
    only_context: int | None = None
    bounds_max_tokens: bool = False
    statuses: Mapping[str, ModelStatus] = field(default_factory=dict)
    best_status: ModelStatus = _AWAKE
    continued_apis: frozenset[Api] = frozenset()
    streams_usage_on_request: bool = False
    shows_replies_in_streams: bool = False
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    only_fingerprint: Fingerprint = _UNKNOWN
    begun_answers: BegunAnswers = BegunAnswers.KEPT

    @classmethod
    def of(cls, entries: tuple[ModelEntry, ...], state: BackendState, config: BackendConfig) -> Serving:
        """The models that a backend serves.

        Args:
            entries: the models that the backend reports.
            state: the report that has them.
            config: its ``models`` and ``accepts_unlisted_models`` take precedence over reports.
        """
        stated = config.models
        model_names = state.model_names if stated is None else ModelNames.STRICT
        if config.accepts_unlisted_models is not None:
            model_names = ModelNames.ANY if config.accepts_unlisted_models else ModelNames.STRICT
        contexts, fingerprints = _by_name(entries, state.contexts), _by_name(entries, state.fingerprints)
        only = entries[0]["id"] if len(entries) == 1 else ""
        if stated is None:
            models, names = entries, [name for entry in entries for name in names_of(entry)]
        else:
            models = tuple({**_entry_of(entries, name), "id": name} for name in stated)
            names = list(_with_implied(stated))
        best_status = min((state.statuses.get(entry["id"], _AWAKE) for entry in entries), default=_AWAKE)
        return cls(
            models, frozenset(names), model_names, contexts, state.contexts.get(only), state.bounds_max_tokens,
            _statuses(entries, state, names, best_status), best_status, state.continued_apis,
            state.streams_usage_on_request, state.shows_replies_in_streams,
            fingerprints, state.fingerprints.get(only, _UNKNOWN),
            state.begun_answers,
        )  # fmt: skip

    def context_of(self, model: str | None) -> int | None:
        """Tokens that a prompt for ``model`` and its answer may have together; ``None`` when unknown."""
        return self.only_context if model is None else self.contexts.get(model, self.only_context)

    def fingerprint_of(self, model: str | None) -> Fingerprint:
        """What tells its replica of ``model`` apart from others."""
        return self.only_fingerprint if model is None else self.fingerprints.get(model, self.only_fingerprint)

    def status_of(self, model: str | None) -> ModelStatus:
        """Whether the backend can serve ``model`` at once; ``None`` and unlisted names stand for its best model."""
        if model is None or model not in self.model_ids:
            return self.best_status
        return self.statuses.get(model, _AWAKE)

    def listed_name(self, model: str | None) -> str | None:
        """The listed name of the model that answers a request for ``model``; ``None`` if no name is known.

        A name that the backend serves without listing it stands for its first model. A client can therefore make up
        names, but none of them gets here.
        """
        if model is not None and model in self.model_ids:
            return model
        return self.models[0]["id"] if self.models else None

    def continues(self, other: Serving, model: str | None, api: Api, most_tokens: float) -> bool:
        """Whether this backend can continue an answer of ``other`` to a request of ``api`` that names ``model``.

        Args:
            most_tokens: that the prompt and the answer can have together; infinite when unknown.
        """
        if api not in self.continued_apis:
            return False
        our_context, their_context = self.context_of(model), other.context_of(model)
        if our_context is not None and their_context is not None and our_context < min(their_context, most_tokens):
            return False
        if model is None or model not in other.model_ids or model not in self.model_ids:
            if self.model_ids != other.model_ids:
                return False
            model = self.listed_name(None)
        return self.fingerprint_of(model).is_same_model(other.fingerprint_of(model))

    def routes_like(self, other: Serving) -> bool:
        """Whether both serve the same requests. Entries may differ: vLLM gives them a new ``created`` every time."""
        return (
            self.model_ids == other.model_ids
            and self.model_names is other.model_names
            and self.contexts == other.contexts
            and (self.statuses, self.best_status) == (other.statuses, other.best_status)
        )


def _statuses(
    entries: tuple[ModelEntry, ...], state: BackendState, names: Sequence[str], best: ModelStatus
) -> Mapping[str, ModelStatus]:
    if not state.statuses:
        return {}
    reported = {name: state.statuses.get(entry["id"], _AWAKE) for entry in entries for name in names_of(entry)}
    return {name: reported.get(name, best) for name in names}


def names_of(entry: ModelEntry) -> tuple[str, ...]:
    """The names of a model, its id first: also llama.cpp's aliases, and ``x`` for ``x:latest``, as in Ollama."""
    aliases = entry.get("aliases")
    listed = [entry["id"], *(alias for alias in aliases if isinstance(alias, str))] if aliases else [entry["id"]]
    return _with_implied(listed)


def _with_implied(names: Sequence[str]) -> tuple[str, ...]:
    return (*names, *(name.removesuffix(_IMPLIED_TAG) for name in names if name.endswith(_IMPLIED_TAG)))


def _by_name(entries: Iterable[ModelEntry], by_id: Mapping[str, T]) -> dict[str, T]:
    return {name: by_id[entry["id"]] for entry in entries if entry["id"] in by_id for name in names_of(entry)}


def _entry_of(models: tuple[ModelEntry, ...], name: str) -> ModelEntry:
    return next((entry for entry in models if name in names_of(entry)), {"object": "model", "owned_by": "unknown"})
