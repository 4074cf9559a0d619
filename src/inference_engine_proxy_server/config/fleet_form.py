"""The structure of the fleet file, and its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from inference_engine_proxy_server.config.base_urls import as_backend_url, distinct_backend_urls, name_of
from inference_engine_proxy_server.config.entry import Entry
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.model_form import ModelEntry, ModelName
from inference_engine_proxy_server.config.values import Secret, as_secret, as_variable

__all__ = [
    "NOT_IN_THE_FILE", "Aspect", "BackendEntry", "ExactSchema", "FleetForm", "fleet_file_schema", "have_own_names",
]  # fmt: skip

_URL = r"^([Mm]?[Dd][Nn][Ss]\+|[Ss][Rr][Vv]\+)?[Hh][Tt][Tt][Pp][Ss]?://"
_NAME = "[A-Za-z0-9._-]{1,64}"

NOT_IN_THE_FILE: Mapping[str, str] = MappingProxyType(
    {
        "BACKENDS": "use the file's list 'backends'",
        "CONFIG_FILE": "it names this file",
        "MODEL_DIR": "only Docker Compose uses it, and reads it from .env",
        "MODEL": "only Docker Compose uses it, and reads it from .env",
    }
)
"""Settings that the file cannot set, and why."""


def _as_name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError("must be up to 64 letters, digits, '.', '_' or '-'")
    return value


def _as_text(value: object) -> str:
    """A setting's value as text, as in its environment variable."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError("must be text, a number, true or false, or a list of these")  # noqa: TRY004 - pydantic wants it
    return as_variable(value)


_Name = Annotated[str, AfterValidator(_as_name), Field(json_schema_extra={"pattern": f"^{_NAME}$"})]
Aspect = Literal["weights", "source", "tokenizer", "template", "context", "names", "slots", "version"]
_Threshold = Annotated[int, Field(ge=0, le=1_000_000)]


class BackendEntry(Entry):
    """One engine server."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["api_key", "api_key_env"]}})

    url: Annotated[str, AfterValidator(as_backend_url), Field(json_schema_extra={"pattern": _URL})]
    """Base URL such as http://llm-1:8080, without /v1; dns+http://, srv+http:// or mdns+http:// for many backends."""
    name: _Name | None = None
    """Display name; by default host:port."""
    engine: _Name | None = None
    """Name of its engine, such as llamacpp or vllm; detected by default."""
    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Relative share of requests among equally loaded backends; by default 1."""
    tier: Annotated[int, Field(ge=1, le=100)] | None = None
    """Its tier, by default 1; higher tiers get the requests that lower ones have no room for."""
    api_key: Secret | None = None
    """API key to send to it, instead of BACKEND_API_KEY."""
    api_key_env: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds this key."""
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Names of the models that it serves, in place of the names it reports."""
    accepts_unlisted_models: bool | None = None
    """Whether it serves names that it does not list, as vLLM with a LoRA resolver does."""
    takes_any_model: bool | None = None
    """Whether it also serves names that other backends list, with whatever model it has."""
    external: bool | None = None
    """Whether it is a paid or public service: it is not polled, only connected to; requires models."""
    capacity: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that it processes at a time."""
    max_loaded_models: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Models that it holds in memory at most, if it loads and unloads them; by default as it reports."""
    max_requests_processing: _Threshold | None = None
    """Reported requests in process above which it is busy and gets no new ones."""
    max_requests_waiting: _Threshold | None = None
    """Reported waiting requests above which it is busy and gets no new ones."""
    stream_usage: bool | None = None
    """Whether requests for streams ask it for their usage, for USAGE_FILE; by default if its engine needs that."""
    may_differ: list[Aspect] | None = None
    """In what it may differ from other backends with the same model, without a warning."""

    @model_validator(mode="after")
    def _states_its_models_once(self) -> BackendEntry:
        if self.external and self.models is None:
            raise ValueError("external: true requires 'models', because the proxy does not ask for them")
        if self.takes_any_model and self.accepts_unlisted_models is False:
            raise ValueError("takes_any_model: true contradicts accepts_unlisted_models: false")
        return self

    @model_validator(mode="after")
    def _has_one_key(self) -> BackendEntry:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("set 'api_key' or 'api_key_env', not both")
        return self

    def config(self, environ: Mapping[str, str]) -> BackendConfig:
        """The backend's configuration; raises ``ValueError`` if the variable that it names has no key."""
        key = self.api_key
        if self.api_key_env is not None:
            # The error does not repeat the name, which may be a misplaced key.
            secret = environ.get(self.api_key_env, "").strip()
            if not secret:
                raise ValueError("the environment variable that it names is not set")
            key = SecretStr(as_secret(secret))
        return BackendConfig(
            url=self.url,
            name=self.name or name_of(self.url),
            engine=self.engine,
            weight=1 if self.weight is None else self.weight,
            tier=self.tier or 1,
            is_external=self.external or False,
            takes_any_model=self.takes_any_model or False,
            api_key=key,
            models=None if self.models is None else tuple(dict.fromkeys(self.models)),
            accepts_unlisted_models=self.accepts_unlisted_models,
            capacity=self.capacity,
            max_loaded_models=self.max_loaded_models,
            max_requests_processing=self.max_requests_processing,
            max_requests_waiting=self.max_requests_waiting,
            stream_usage=self.stream_usage,
            may_differ=tuple(self.may_differ or ()),
        )


_AnyEntry = TypeVar("_AnyEntry", bound=BackendEntry)


def have_own_names(entries: list[_AnyEntry]) -> list[_AnyEntry]:
    """``entries``, unchanged; raises ``ValueError`` if two have the same server or the same name."""
    distinct_backend_urls(entry.url for entry in entries)
    names = [entry.name for entry in entries if entry.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two backends have the name {name}")
    return entries


class FleetForm(BaseModel):
    """Details of backends and models, and settings that command line, environment and .env leave unset."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True, title="Fleet file"
    )

    backends: Annotated[list[BackendEntry], Field(min_length=1), AfterValidator(have_own_names)] = Field(default=[])
    """The engine servers; BACKENDS, if set, selects which of them are used."""
    default_model: ModelName | None = None
    """The model of requests that name none."""
    models: dict[ModelName, ModelEntry] = Field(default={})
    """Models, by the names that requests use."""
    settings: dict[str, Annotated[Any, BeforeValidator(_as_text)]] = Field(default={})
    """Settings by variable name, in upper or lower case."""


class ExactSchema(GenerateJsonSchema):
    """Optional fields may be left out, but not be null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        default = schema.get("default")
        is_shown = isinstance(default, (str, int, float))
        return super().default_schema(schema) if is_shown else self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - the base class calls it for every field
        return False


def fleet_file_schema(settings: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of the file.

    Args:
        settings: the model of its section ``settings``.
    """
    properties = settings.model_json_schema(schema_generator=ExactSchema)["properties"]
    schema = FleetForm.model_json_schema(schema_generator=ExactSchema)
    schema["properties"]["settings"] |= {
        "properties": {
            name.upper(): _as_written(of_field)
            for name, of_field in properties.items()
            if name.upper() not in NOT_IN_THE_FILE
        },
        # Names in lower case mean the same, which a schema cannot express; the program checks them.
        "patternProperties": {"^[A-Z_]*[a-z][A-Za-z_]*$": {"type": ["string", "number", "boolean", "array"]}},
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_written(schema: JsonSchemaValue) -> JsonSchemaValue:
    if schema.get("type") != "array":
        return schema
    return {"description": schema["description"], "type": ["string", "array"], "items": {"type": "string"}}
