"""Reads the fleet file (CONFIG_FILE).

A file with a mistake is refused as a whole, with one line that names the place and never repeats a key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.fleet_form import (
    NOT_IN_THE_FILE,
    BackendEntry,
    ExactSchema,
    FleetForm,
    ModelEntry,
)
from inference_engine_proxy_server.config.values import closest_name, requirement

__all__ = ["FleetFile", "FleetFileError", "read_fleet_file"]

_SHOWN = re.compile(r"[\w.-]{0,15}", re.ASCII)  # shorter than any secret
_MODEL = re.compile(r"[\w.:/@+-]{1,100}", re.ASCII)  # model names are no secrets
_FORMS: Mapping[str | int, type[BaseModel]] = {"backends": BackendEntry, "models": ModelEntry}

# Replaces pydantic's messages, which are about Python.
_WORDS = {
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_pattern_mismatch": "must be the name of an environment variable",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_short": "must not be empty; to leave it unset, remove the line",
}


@dataclass(frozen=True, slots=True)
class FleetFile:
    """The content of a fleet file.

    Attributes:
        backends: in the file's order.
        settings: texts by variable name.
        models: by the names that requests use.
    """

    backends: tuple[BackendConfig, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)


class FleetFileError(Exception):
    """The fleet file cannot be used; the text is one line with the place and the reason, without any secret."""


def read_fleet_file(path: Path, environ: Mapping[str, str], known_settings: Collection[str]) -> FleetFile:
    """Read a YAML file.

    Args:
        environ: has the variables that ``api_key_env`` names.
        known_settings: the names of all variables.

    Raises:
        FleetFileError: the file cannot be read, or is invalid.
    """
    text = _text_of(path)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
        if content is None:  # an editor may be about to write the content
            raise FleetFileError(f"{path} is empty; if that is intended, write 'settings: {{}}'")
        form = FleetForm.model_validate(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = "repeats a name" if isinstance(error, _TwiceError) else "is not YAML"
        raise FleetFileError(f"{path} {what}{f', line {mark.line + 1}' if mark else ''}") from None
    except ValidationError as error:
        raise FleetFileError(f"{path}: {_problem(error)}") from None
    except (ValueError, OverflowError, RecursionError):  # the YAML library's, such as for 2027-02-31
        raise FleetFileError(f"{path} is not YAML, or contains an impossible date or number") from None
    models = {name: entry.config() for name, entry in form.models.items()}
    return FleetFile(_backends(path, form, environ), _settings(path, form, known_settings), models)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "there is no such file"
    raise FleetFileError(f"CONFIG_FILE is {str(path)!r}: {reason}")


def _backends(path: Path, form: FleetForm, environ: Mapping[str, str]) -> tuple[BackendConfig, ...]:
    backends = []
    for index, entry in enumerate(form.backends):
        try:
            backends.append(entry.config(environ))
        except ValueError as error:
            raise FleetFileError(f"{path}: backends.{index}.api_key_env: {error}") from None
    return tuple(backends)


def _settings(path: Path, form: FleetForm, known: Collection[str]) -> Mapping[str, str]:
    settings: dict[str, str] = {}
    for written, value in form.settings.items():
        name = written.upper()
        if name in NOT_IN_THE_FILE:
            raise FleetFileError(f"{path}: settings.{name} cannot be set in this file: {NOT_IN_THE_FILE[name]}")
        if name not in known:
            raise FleetFileError(
                f"{path}: settings.{_unknown(written, name, [name for name in known if name not in NOT_IN_THE_FILE])}"
            )
        if name in settings:
            raise FleetFileError(f"{path}: settings.{name} is set twice")
        settings[name] = value
    return settings


class _TwiceError(yaml.MarkedYAMLError):
    """A mapping repeats a name: YAML would keep only the last value, and could drop half a fleet silently."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names: set[str] = set()
        for key in keys:
            if key.value in names:
                raise _TwiceError(problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(error: ValidationError) -> str:
    """The place of the first problem, and what is allowed there."""
    details = error.errors(include_input=False, include_url=False)
    # A misspelt name explains why the correct one is missing.
    detail = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    *parents, last = detail["loc"] or ("",)
    form = _FORMS.get(parents[0], FleetForm) if parents else FleetForm
    known = {*form.model_fields, *_names_of_models(detail["loc"])}
    place = "".join(f"{_shown(part, known)}." for part in parents)
    if detail["type"] == "extra_forbidden":
        return place + _unknown(str(last), str(last), form.model_fields)
    place += _shown(last, known)
    if detail["type"] == "missing":
        return f"{place} is missing"
    schema = form.model_json_schema(schema_generator=ExactSchema)["properties"].get(last, {})
    has_range = "enum" in schema or schema.get("type") in {"integer", "number"}
    words = _WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    text = requirement(str(last), schema) if has_range and detail["type"] != "value_error" else words
    return f"{place}: {text}" if place else text


def _names_of_models(place: Sequence[str | int]) -> list[str]:
    return [str(part) for part in place[1:2] if place[0] == "models" and _MODEL.fullmatch(str(part))]


def _unknown(written: str, name: str, known: Collection[str]) -> str:
    """The message about a name that is not one of ``known``."""
    close = closest_name(name, known, min_similarity=0.6)
    if close is not None:
        shown = written if re.fullmatch("[A-Za-z_-]+", written) else "***"
        return f"{shown} is unknown; did you mean {close}?"
    names = f"use one of: {', '.join(known)}" if len(known) < 20 else "`inference-proxy settings` lists all names"
    return f"{_shown(written, ())} is unknown; {names}"


def _shown(part: str | int, known: Collection[str]) -> str:
    """A part of a place; an unknown name may be a misplaced secret."""
    text = str(part)
    return text if part in known or _SHOWN.fullmatch(text) else "***"
