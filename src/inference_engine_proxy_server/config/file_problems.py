"""Explains what is wrong with a YAML file of the operator: the place and the reason, without any secret."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from inference_engine_proxy_server.config.fleet_form import ExactSchema
from inference_engine_proxy_server.config.values import closest_name, requirement

__all__ = ["FileFormError", "problem_with", "read_yaml", "unknown_name"]

_SHOWN = re.compile(r"[\w.-]{0,15}", re.ASCII)  # shorter than any secret
_MODEL = re.compile(r"[\w.:/@+*-]{1,100}", re.ASCII)  # model names are no secrets
_QUOTED = re.compile(r"'(?!<[a-z ]+>')[^']{13,}'")  # as long as a secret may be, and not YAML's '<block mapping start>'

# Replaces pydantic's messages, which are about Python.
_WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_pattern_mismatch": "must be the name of an environment variable",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "too_short": "must not be empty; to leave it unset, remove the line",
}
# Adds the usual cause to messages of the YAML library.
_CAUSES = {
    "mapping values are not allowed here": "is the line indented like its neighbours, and are values with ': ' quoted?",
    r"found character '\t' that cannot start any token": "indent with blanks, not with tabs",
    "found undefined alias": "text that begins with * must be quoted",
    "could not determine a constructor for the tag": "text that begins with ! must be quoted",
    "found character '@'": "text that begins with @ must be quoted",
    "found character '`'": "text that begins with ` must be quoted",
    "found character '%'": "text that begins with % must be quoted",
    "found unexpected end of stream": "a quotation mark is missing",
    "expected ',' or": "a comma or a closing bracket is missing",
    "could not find expected ':'": "a name needs a colon and a blank after it",
    "found unhashable key": "a name must be text",
    "expected <block end>": "is the line indented like its neighbours?",
}


class FileFormError(Exception):
    """A file is not YAML, or repeats a name; the text is what follows the file's name in a message."""


class _TwiceError(yaml.MarkedYAMLError):
    """A mapping repeats a name: YAML would keep only the last value, and could drop half a fleet silently."""

    def __init__(self, name: str, mark: yaml.Mark) -> None:
        super().__init__(problem_mark=mark)
        self.name = name


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names: set[str] = set()
        for key in keys:
            if key.value in names:
                raise _TwiceError(key.value, key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, known: Collection[str]) -> Any:
    """The content of a YAML file.

    Args:
        text: of the file.
        known: names that are no secrets.

    Raises:
        FileFormError: it is not YAML, or repeats a name.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise FileFormError(_problem_of_yaml(error, known)) from None
    except (ValueError, OverflowError) as error:  # such as for 2027-02-31
        reason = "" if "'" in str(error) else f": {error}"
        raise FileFormError(f"is not YAML, or contains an impossible date or number{reason}") from None
    except RecursionError:
        raise FileFormError("is not YAML, or is nested too deeply") from None


def problem_with(error: ValidationError, form: type[BaseModel], entries: Mapping[str | int, type[BaseModel]]) -> str:
    """The place of the first problem, and what is allowed there.

    Args:
        error: about the file's content.
        form: of the file.
        entries: the forms of the entries of the file's sections.
    """
    details = error.errors(include_input=False, include_url=False)
    # A misspelt name explains why the correct one is missing.
    detail = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    *parents, last = [part for part in detail["loc"] if part != "[key]"] or [""]
    form = _form_at(parents, form, entries)
    known = {*form.model_fields, *_names_of_models(detail["loc"])}
    place = "".join(f"{_shown(part, known)}." for part in parents)
    if detail["type"] == "extra_forbidden":
        return place + unknown_name(str(last), str(last), form.model_fields)
    place += (_shown(last, known) or "''") if detail["loc"] else ""
    if detail["type"] == "missing":
        return f"{place} is missing"
    schema = form.model_json_schema(schema_generator=ExactSchema)["properties"].get(last, {})
    has_range = "enum" in schema or schema.get("type") in {"integer", "number"}
    words = _WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    if not place and detail["type"] != "value_error":
        words = f"must be a mapping that begins with {_alternatives(form.model_fields)}"
    text = requirement(str(last), schema) if has_range and detail["type"] != "value_error" else words
    return f"{place}: {text}" if place else text


def _form_at(
    place: Sequence[str | int], form: type[BaseModel], entries: Mapping[str | int, type[BaseModel]]
) -> type[BaseModel]:
    """The form of the mapping at ``place``."""
    form = entries.get(place[0], form) if place else form
    for part in place[1:]:
        field = form.model_fields.get(str(part))
        inner = () if field is None else (field.annotation, *get_args(field.annotation))
        form = next((one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)), form)
    return form


def unknown_name(written: str, name: str, known: Collection[str]) -> str:
    """The message about a name that is not one of ``known``."""
    close = closest_name(name, known, min_similarity=0.6)
    if close is not None:
        is_no_secret = re.fullmatch("[A-Za-z_-]+", written) or closest_name(name, known, min_similarity=0.8)
        shown = written if is_no_secret else "***"
        return f"{shown} is unknown; did you mean {close}?"
    names = f"use one of: {', '.join(known)}" if len(known) < 20 else "`inference-proxy settings` lists all names"
    return f"{_shown(written, ())} is unknown; {names}"


def _alternatives(names: Iterable[str]) -> str:
    *others, last = (f"'{name}:'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _problem_of_yaml(error: yaml.YAMLError, known: Collection[str]) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    if isinstance(error, _TwiceError):
        return f"repeats the name {_shown(error.name, known)}{line}"
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or ""
    cause = next((cause for problem, cause in _CAUSES.items() if reason.startswith(problem)), None)
    said = _QUOTED.sub("'***'", reason)
    explained = f"{said} ({cause})" if cause else said
    return f"is not YAML{line}{f': {explained}' if explained else ''}"


def _names_of_models(place: Sequence[str | int]) -> list[str]:
    """The parts of a place below the models: no secrets are expected there."""
    return [str(part) for part in place[1:] if place[0] == "models" and _MODEL.fullmatch(str(part))]


def _shown(part: str | int, known: Collection[str]) -> str:
    """A part of a place; an unknown name may be a misplaced secret."""
    text = str(part)
    return text if part in known or _SHOWN.fullmatch(text) else "***"
