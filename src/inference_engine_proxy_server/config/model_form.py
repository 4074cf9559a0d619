"""The entries of the fleet file about models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from inference_engine_proxy_server.config.entry import Entry
from inference_engine_proxy_server.config.fleet import ModelConfig, ParametersConfig
from inference_engine_proxy_server.config.parameters import as_parameters, conflict_between, paths_named
from inference_engine_proxy_server.config.values import BalancingPolicy

__all__ = ["ModelEntry", "ModelName", "ParametersEntry"]


def _as_model_name(value: str) -> str:
    if "*" in value:
        raise ValueError("the name of a model has no '*'; patterns belong below 'aliases'")
    return value


def _checked_parameters(value: dict[Any, Any]) -> dict[Any, Any]:
    if not value:
        raise ValueError("must not be empty; to leave it unset, remove the line")
    as_parameters(value)
    return value


def _checked_names(value: list[str]) -> list[str]:
    paths_named(value)
    return value


def _checked_efforts(value: dict[Any, Any]) -> dict[Any, Any]:
    if not value:
        raise ValueError("must be a mapping such as {none: {chat_template_kwargs: {enable_thinking: false}}}")
    for effort, meaning in value.items():
        if not isinstance(effort, str):  # YAML reads off and no as false
            raise ValueError(f"the effort {str(effort).lower()} must be text: put it in quotes")  # noqa: TRY004
        if isinstance(meaning, str) and meaning:
            continue
        if not isinstance(meaning, dict) or not meaning:
            raise ValueError(f"{effort} must be another effort, or a mapping of parameters")
        try:
            as_parameters(meaning)
        except ValueError as error:
            raise ValueError(f"{effort}: {error}") from None
    return value


_Text = Annotated[str, Field(min_length=1)]
_Object = {"type": "object", "minProperties": 1}
_Parameters = Annotated[dict[Any, Any], AfterValidator(_checked_parameters), WithJsonSchema(_Object)]
_Meaning = {"anyOf": [{"type": "string", "minLength": 1}, _Object]}
_Efforts = Annotated[
    dict[Any, Any],
    AfterValidator(_checked_efforts),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": _Meaning}),
]

ModelName = Annotated[_Text, AfterValidator(_as_model_name), Field(json_schema_extra={"pattern": "^[^*]*$"})]
"""The name of a model."""


class ParametersEntry(Entry):
    """Changes of the parameters in requests for one model."""

    default: _Parameters | None = None
    """Parameters that are added to requests without them."""
    set: _Parameters | None = None
    """Parameters that replace those of the request."""
    remove: Annotated[list[_Text], Field(min_length=1), AfterValidator(_checked_names)] | None = None
    """Names of parameters that are removed; dots lead into mappings."""
    reasoning_effort: _Efforts | None = None
    """What a client's effort means for this model: another effort, or parameters that are set instead."""
    system_prompt: _Text | None = None
    """Added to requests that have no system prompt."""

    @model_validator(mode="after")
    def _has_no_conflict(self) -> ParametersEntry:
        config = self.config()
        conflict = conflict_between(config.fixed, config.defaults, config.removed)
        if conflict is not None:
            raise ValueError(conflict)
        return self

    def config(self) -> ParametersConfig:
        """The configuration of the parameters."""
        efforts = {
            effort: meaning if isinstance(meaning, str) else as_parameters(meaning)
            for effort, meaning in (self.reasoning_effort or {}).items()
        }
        return ParametersConfig(
            defaults={} if self.default is None else as_parameters(self.default),
            fixed={} if self.set is None else as_parameters(self.set),
            removed=() if self.remove is None else paths_named(self.remove),
            reasoning_efforts=efforts,
            system_prompt=self.system_prompt,
        )


class ModelEntry(Entry):
    """Settings of requests for one model."""

    aliases: Annotated[list[_Text], Field(min_length=1)] | None = None
    """Other names of the model; * in a name stands for any text."""
    hidden_aliases: bool | None = None
    """Whether the list of models leaves out the aliases."""
    serves_as: ModelName | None = None
    """The model that answers requests for this name."""
    parameters: ParametersEntry | None = None
    """Changes of the parameters in its requests."""
    fallbacks: Annotated[list[ModelName], Field(min_length=1)] | None = None
    """Models that serve its requests if it cannot, in this order."""
    fallback_after_seconds: Annotated[float, Field(gt=0, le=86400)] | None = None
    """How long a request waits for it before the first fallback gets the request; by default as long as usual."""
    balancing_policy: BalancingPolicy | None = None
    """How a backend is chosen for them, in place of BALANCING_POLICY."""

    @model_validator(mode="after")
    def _has_a_policy_only_if_it_is_a_model(self) -> ModelEntry:
        if self.serves_as is not None and self.balancing_policy is not None:
            raise ValueError(f"'balancing_policy' belongs to {self.serves_as}, which it serves as")
        return self

    @model_validator(mode="after")
    def _waits_for_a_fallback(self) -> ModelEntry:
        if self.fallback_after_seconds is not None and self.fallbacks is None:
            raise ValueError("'fallback_after_seconds' requires 'fallbacks'")
        return self

    def config(self) -> ModelConfig:
        """The model's configuration."""
        return ModelConfig(
            balancing_policy=self.balancing_policy,
            aliases=tuple(self.aliases or ()),
            hidden_aliases=bool(self.hidden_aliases),
            serves_as=self.serves_as,
            parameters=None if self.parameters is None else self.parameters.config(),
            fallbacks=tuple(self.fallbacks or ()),
            fallback_after_seconds=self.fallback_after_seconds,
        )
