"""What a backend serves: its models, the names they answer to, and the lengths of their contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_engine_proxy_server.backends.base import BackendState, ModelEntry, ModelNames
from inference_engine_proxy_server.config.fleet import BackendConfig

__all__ = ["Serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    """The models of one backend. They are kept while the backend is down.

    Attributes:
        models: entries for ``GET /v1/models``.
        model_ids: names of the models, aliases included.
        model_names: how the backend treats other names.
        contexts: tokens that a prompt and its answer may have together, by the names of the models that report it.
        only_context: the context of the backend's only model, whatever the name; ``None`` if it has several.
        bounds_max_tokens: the backend refuses a request whose ``max_tokens`` exceeds its context.
    """

    models: tuple[ModelEntry, ...] = ()
    model_ids: frozenset[str] = frozenset()
    model_names: ModelNames = ModelNames.UNKNOWN
    contexts: Mapping[str, int] = field(default_factory=dict)
    only_context: int | None = None
    bounds_max_tokens: bool = False

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
            for name in _names(entry)
        }  # fmt: skip
        only_context = state.contexts.get(entries[0]["id"]) if len(entries) == 1 else None
        if stated is None:
            ids = frozenset(name for entry in entries for name in _names(entry))
            return cls(entries, ids, model_names, contexts, only_context, state.bounds_max_tokens)
        models = tuple({**_entry_of(entries, name), "id": name} for name in stated)
        return cls(models, frozenset(stated), model_names, contexts, only_context, state.bounds_max_tokens)

    def context_of(self, model: str | None) -> int | None:
        """Tokens that a prompt for ``model`` and its answer may have together; ``None`` when unknown."""
        return self.only_context if model is None else self.contexts.get(model, self.only_context)

    def routes_like(self, other: Serving) -> bool:
        """Whether both serve the same requests. Entries may differ: vLLM gives them a new ``created`` every time."""
        return (
            self.model_ids == other.model_ids
            and self.model_names is other.model_names
            and self.contexts == other.contexts
        )


def _names(entry: ModelEntry) -> tuple[str, ...]:
    """The names that a model answers to; llama.cpp lists aliases besides the id."""
    aliases = entry.get("aliases")
    return (entry["id"], *(alias for alias in aliases if isinstance(alias, str))) if aliases else (entry["id"],)


def _entry_of(models: tuple[ModelEntry, ...], name: str) -> ModelEntry:
    return next((entry for entry in models if name in _names(entry)), {"object": "model", "owned_by": "unknown"})
