"""The form of the fleet file, and its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from inference_engine_proxy_server.config.base_urls import as_base_url, distinct_base_urls, name_of
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.values import BalancingPolicy, Secret, as_secret, as_variable

__all__ = ["NOT_IN_THE_FILE", "BackendEntry", "ExactSchema", "FleetForm", "ModelEntry", "fleet_file_schema"]

_NAME = "[A-Za-z0-9._-]{1,64}"

NOT_IN_THE_FILE: Mapping[str, str] = MappingProxyType(
    {
        "BACKENDS": "the file's own list 'backends' has its place",
        "CONFIG_FILE": "it names this file, so it cannot stand in it",
        "MODEL_DIR": "only Docker Compose uses it, which reads .env",
        "MODEL": "only Docker Compose uses it, which reads .env",
    }
)
"""Settings that the file cannot give, and why."""


def _as_name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError("up to 64 letters, digits, '.', '_' and '-' are needed")
    return value


def _as_text(value: object) -> str:
    """A setting's value as its variable would have it."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError("a text, a number, true or false, or a list of these is needed")  # noqa: TRY004 - for pydantic
    return as_variable(value)


_Name = Annotated[str, AfterValidator(_as_name), Field(json_schema_extra={"pattern": f"^{_NAME}$"})]
_Threshold = Annotated[int, Field(ge=0, le=1_000_000)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: object) -> object:
        if value is None:  # `models:` with nothing after it must not mean all models
            raise ValueError("a value is needed, or leave the line out")
        return value


class BackendEntry(_Entry):
    """One engine server."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["api_key", "api_key_env"]}})

    url: Annotated[str, AfterValidator(as_base_url), Field(json_schema_extra={"pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"})]
    """Base URL, such as http://llm-1:8080, without /v1."""
    name: _Name | None = None
    """Name for people; without one it is host:port."""
    engine: _Name | None = None
    """Name of its engine, such as llamacpp or vllm; without one it is found out."""
    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Its share of requests, where backends are equally loaded; 1 without one."""
    api_key: Secret | None = None
    """Key that it is shown, instead of BACKEND_API_KEY."""
    api_key_env: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that has this key."""
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Names of the models that it serves, in place of those it tells."""
    capacity: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that it works on at a time."""
    max_requests_processing: _Threshold | None = None
    """Requests in process, as it tells them, above which it is busy and gets no new ones."""
    max_requests_waiting: _Threshold | None = None
    """Requests waiting inside it, as it tells them, above which it is busy and gets no new ones."""

    @model_validator(mode="after")
    def _has_one_key(self) -> BackendEntry:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("'api_key' and 'api_key_env' cannot stand together")
        return self

    def config(self, environ: Mapping[str, str]) -> BackendConfig:
        """Raises ``ValueError`` if there is no key in the variable that it names."""
        key = self.api_key
        if self.api_key_env is not None:
            # The name is not repeated: it may be a key that was written in the wrong place.
            secret = environ.get(self.api_key_env, "").strip()
            if not secret:
                raise ValueError("the environment variable that it names is not set")
            key = SecretStr(as_secret(secret))
        return BackendConfig(
            url=self.url,
            name=self.name or name_of(self.url),
            engine=self.engine,
            weight=1 if self.weight is None else self.weight,
            api_key=key,
            models=None if self.models is None else tuple(dict.fromkeys(self.models)),
            capacity=self.capacity,
            max_requests_processing=self.max_requests_processing,
            max_requests_waiting=self.max_requests_waiting,
        )


class ModelEntry(_Entry):
    """What holds for requests that ask for one model."""

    balancing_policy: BalancingPolicy | None = None
    """How a backend is chosen for them, instead of by BALANCING_POLICY."""

    def config(self) -> ModelConfig:
        """The same, for who reads no files."""
        return ModelConfig(self.balancing_policy)


def _have_own_names(entries: list[BackendEntry]) -> list[BackendEntry]:
    distinct_base_urls(entry.url for entry in entries)
    names = [entry.name for entry in entries if entry.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two backends have the name {name}")
    return entries


class FleetForm(BaseModel):
    """More about backends and models, and settings that neither command line nor environment nor .env gives."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True, title="Fleet file"
    )

    backends: Annotated[list[BackendEntry], Field(min_length=1), AfterValidator(_have_own_names)] = Field(default=[])
    """The engine servers; BACKENDS, where it is set, says which of them are used."""
    models: dict[Annotated[str, Field(min_length=1)], ModelEntry] = Field(default={})
    """Models, by the names that requests ask for."""
    settings: dict[str, Annotated[Any, BeforeValidator(_as_text)]] = Field(default={})
    """Settings by the names of their variables, in upper or lower case."""


class ExactSchema(GenerateJsonSchema):
    """Optional fields may be left out, but not be null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        default = schema.get("default")
        is_worth_telling = isinstance(default, (str, int, float))
        return super().default_schema(schema) if is_worth_telling else self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - asked of every field
        return False


def fleet_file_schema(settings: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of the file.

    Args:
        settings: what its section ``settings`` may give.
    """
    properties = settings.model_json_schema(schema_generator=ExactSchema)["properties"]
    schema = FleetForm.model_json_schema(schema_generator=ExactSchema)
    schema["properties"]["settings"] |= {
        "properties": {
            name.upper(): _as_written(of_field)
            for name, of_field in properties.items()
            if name.upper() not in NOT_IN_THE_FILE
        },
        # Names with small letters mean the same; a schema cannot say that, so they are left to the program.
        "patternProperties": {"^[A-Z_]*[a-z][A-Za-z_]*$": {"type": ["string", "number", "boolean", "array"]}},
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _as_written(schema: JsonSchemaValue) -> JsonSchemaValue:
    if schema.get("type") != "array":
        return schema
    return {"description": schema["description"], "type": ["string", "array"], "items": {"type": "string"}}
