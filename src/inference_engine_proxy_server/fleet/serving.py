"""The models that a backend serves, with their names and context lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inference_engine_proxy_server.backends.base import Api, BackendState, ModelEntry, ModelNames, ModelStatus
from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.config.fleet import BackendConfig

__all__ = ["Serving", "names_of"]

_AWAKE = ModelStatus.AWAKE
_WEIGHTS = ("n_params", "size", "n_vocab", "n_embd")  # equal for equal weights with equal quantization
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
        contexts = {
            name: state.contexts[entry["id"]] for entry in entries if entry["id"] in state.contexts
            for name in names_of(entry)
        }  # fmt: skip
        only_context = state.contexts.get(entries[0]["id"]) if len(entries) == 1 else None
        if stated is None:
            models, names = entries, [name for entry in entries for name in names_of(entry)]
        else:
            models = tuple({**_entry_of(entries, name), "id": name} for name in stated)
            names = list(_with_implied(stated))
        best_status = min((state.statuses.get(entry["id"], _AWAKE) for entry in entries), default=_AWAKE)
        return cls(
            models, frozenset(names), model_names, contexts, only_context, state.bounds_max_tokens,
            _statuses(entries, state, names, best_status), best_status, state.continued_apis,
            state.streams_usage_on_request, state.shows_replies_in_streams,
            state.begun_answers,
        )  # fmt: skip

    def context_of(self, model: str | None) -> int | None:
        """Tokens that a prompt for ``model`` and its answer may have together; ``None`` when unknown."""
        return self.only_context if model is None else self.contexts.get(model, self.only_context)

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
        ours, theirs = ({} if model is None else _weights_of(one.models, model) for one in (self, other))
        return all(ours[key] == value for key, value in theirs.items() if key in ours)

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


def _weights_of(models: tuple[ModelEntry, ...], name: str) -> Mapping[str, object]:
    """What llama.cpp reports of a model's weights; empty for other engines."""
    meta = _entry_of(models, name).get("meta")
    return {key: meta[key] for key in _WEIGHTS if key in meta} if isinstance(meta, Mapping) else {}


def _entry_of(models: tuple[ModelEntry, ...], name: str) -> ModelEntry:
    return next((entry for entry in models if name in names_of(entry)), {"object": "model", "owned_by": "unknown"})
