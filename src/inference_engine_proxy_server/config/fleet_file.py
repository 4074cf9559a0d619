"""The fleet file (CONFIG_FILE), as it is read.

It is taken as a whole or refused as a whole, with one line that names the place; a key in it is never repeated.
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
from inference_engine_proxy_server.config.values import meant, needed

__all__ = ["FleetFile", "FleetFileError", "read_fleet_file"]

_SHOWN = re.compile(r"[\w.-]{0,15}", re.ASCII)  # no secret is as short
_MODEL = re.compile(r"[\w.:/@+-]{1,100}", re.ASCII)  # the name of a model is none
_FORMS: Mapping[str | int, type[BaseModel]] = {"backends": BackendEntry, "models": ModelEntry}

# pydantic's own words are about Python.
_WORDS = {
    "dict_type": "names with values are needed",
    "list_type": "a list is needed",
    "model_type": "names with values are needed",
    "string_pattern_mismatch": "the name of an environment variable is needed",
    "string_too_short": "a text is needed",
    "string_type": "a text is needed",
    "too_short": "at least one is needed, or leave the line out",
}


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a fleet file says.

    Attributes:
        backends: in the file's order.
        settings: by names of variables, written as those are.
        models: by the names that requests ask for.
    """

    backends: tuple[BackendConfig, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)


class FleetFileError(Exception):
    """A fleet file that cannot be used; the text is one line that says where and why, and has no secret in it."""


def read_fleet_file(path: Path, environ: Mapping[str, str], known_settings: Collection[str]) -> FleetFile:
    """What the YAML file says.

    Args:
        environ: has the keys that ``api_key_env`` names.
        known_settings: names of all variables.

    Raises:
        FleetFileError: it cannot be read, or is not of the form.
    """
    text = _text_of(path)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
        if content is None:  # an editor may be about to write it
            raise FleetFileError(f"{path} is empty; with nothing to say it says 'settings: {{}}'")
        form = FleetForm.model_validate(content)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = "has a name twice" if isinstance(error, _TwiceError) else "is not YAML"
        raise FleetFileError(f"{path} {what}{f', line {mark.line + 1}' if mark else ''}") from None
    except ValidationError as error:
        raise FleetFileError(f"{path}: {_problem(error)}") from None
    except (ValueError, OverflowError, RecursionError):  # the YAML library's, such as for 2027-02-31
        raise FleetFileError(f"{path} is not YAML, or has a date or a number that there is not") from None
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
            raise FleetFileError(f"{path}: settings.{name} is not for this file: {NOT_IN_THE_FILE[name]}")
        if name not in known:
            raise FleetFileError(
                f"{path}: settings.{_unknown(written, name, [name for name in known if name not in NOT_IN_THE_FILE])}"
            )
        if name in settings:
            raise FleetFileError(f"{path}: settings.{name} is listed twice")
        settings[name] = value
    return settings


class _TwiceError(yaml.MarkedYAMLError):
    """A mapping has a name twice: YAML would keep the last one, and half a fleet could go without a word."""


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
    """Where the first problem is, and what is allowed there."""
    details = error.errors(include_input=False, include_url=False)
    # A misspelt name is why the right one is missing.
    detail = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    *parents, last = detail["loc"] or ("",)
    form = _FORMS.get(parents[0], FleetForm) if parents else FleetForm
    known = {*form.model_fields, *_names_of_models(detail["loc"])}
    place = "".join(f"{_shown(part, known)}." for part in parents)
    if detail["type"] == "extra_forbidden":
        return place + _unknown(str(last), str(last), form.model_fields)
    place += _shown(last, known)
    if detail["type"] == "missing":
        return f"{place} is needed"
    schema = form.model_json_schema(schema_generator=ExactSchema)["properties"].get(last, {})
    has_range = "enum" in schema or schema.get("type") in {"integer", "number"}
    words = _WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    said = needed(str(last), schema) if has_range and detail["type"] != "value_error" else words
    return f"{place}: {said}" if place else said


def _names_of_models(place: Sequence[str | int]) -> list[str]:
    return [str(part) for part in place[1:2] if place[0] == "models" and _MODEL.fullmatch(str(part))]


def _unknown(written: str, name: str, known: Collection[str]) -> str:
    """What is said of a name that is not one of ``known``."""
    close = meant(name, known, likeness=0.6)
    if close is not None:
        shown = written if re.fullmatch("[A-Za-z_-]+", written) else "***"
        return f"{shown} is not known; did you mean {close}?"
    are = "is" if len(known) == 1 else "are"
    where = f"there {are} {', '.join(known)}" if len(known) < 20 else "`inference-proxy settings` lists those that are"
    return f"{_shown(written, ())} is not known; {where}"


def _shown(part: str | int, known: Collection[str]) -> str:
    """A part of a place; a name that we do not know may be a secret in the wrong place."""
    text = str(part)
    return text if part in known or _SHOWN.fullmatch(text) else "***"
