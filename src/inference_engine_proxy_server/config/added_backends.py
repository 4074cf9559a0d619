"""Backends that join while the proxy runs: what describes one, and the file that keeps those of operators.

The file (DYNAMIC_BACKENDS_FILE) is written by the proxy. It has the form of the fleet file's list ``backends``, so its
entries can be copied there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from inference_engine_proxy_server.config.base_urls import as_base_url
from inference_engine_proxy_server.config.file_problems import FileFormError, problem_with, read_yaml
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.fleet_form import BackendEntry, ExactSchema, have_own_names

__all__ = [
    "AddedBackendsError",
    "AnnouncedEntry",
    "DescriptionError",
    "JoiningEntry",
    "as_written",
    "config_of",
    "described_backend",
    "entry_schema",
    "read_added_backends",
    "write_added_backends",
]

_ANNOUNCER = "^[A-Za-z0-9._-]{0,64}$"
_Form = TypeVar("_Form", bound=BackendEntry)
_REPAIR = "repair the file, or remove it to start without the backends that operators have added"


class DescriptionError(Exception):
    """The description of a backend cannot be used; the text names the member and the reason, without any secret."""


class AddedBackendsError(Exception):
    """The file cannot be used; the text is one line with the place and the reason, without any secret."""


def _as_announcer(value: str) -> str:
    if not re.fullmatch(_ANNOUNCER, value):
        raise ValueError("must be up to 64 letters, digits, '.', '_' or '-'")
    return value


class JoiningEntry(BackendEntry):
    """One engine server that joins while the proxy runs; not a name that stands for several."""

    url: Annotated[str, AfterValidator(as_base_url), Field(json_schema_extra={"pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"})]
    """Base URL such as http://llm-1:8080, without /v1."""


class AnnouncedEntry(JoiningEntry):
    """One engine server, as it is announced."""

    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 15
    """Seconds after which the backend leaves the fleet, unless it is announced again."""
    announcer: Annotated[str, AfterValidator(_as_announcer), Field(json_schema_extra={"pattern": _ANNOUNCER})] = ""
    """Who announces it; a backend stays while the lease of any announcer lasts."""

    @model_validator(mode="after")
    def _reads_no_variable(self) -> AnnouncedEntry:
        if self.api_key_env is not None:  # it would send any secret of the proxy to any address
            raise ValueError("api_key_env cannot be announced, because it names a variable of the proxy: send api_key")
        return self


class _AddedForm(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    backends: Annotated[list[JoiningEntry], AfterValidator(have_own_names)]
    """The engine servers that operators have added."""


def described_backend(content: object, form: type[_Form]) -> _Form:
    """The backend that ``content``, an object of JSON, describes.

    Raises:
        DescriptionError: it describes none.
    """
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise DescriptionError(problem_with(error, form, {})) from None


def config_of(entry: Mapping[str, Any], variables: Mapping[str, str], usual_key: SecretStr | None) -> BackendConfig:
    """The configuration of a backend from a valid entry.

    Args:
        variables: has the variables that ``api_key_env`` names.
        usual_key: for a backend without a key of its own.

    Raises:
        DescriptionError: the variable that the entry names has no key.
    """
    try:
        config = BackendEntry.model_validate(entry).config(variables)
    except ValueError as error:
        raise DescriptionError(f"api_key_env: {error}") from None
    return replace(config, api_key=config.api_key or usual_key)


def as_written(entry: BackendEntry) -> dict[str, Any]:
    """``entry`` as JSON has it: only what it states, and with its key."""
    stated = entry.model_dump(exclude_none=True, exclude_unset=True, include=set(BackendEntry.model_fields))
    return {name: _plain(value) for name, value in stated.items()}


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def entry_schema(form: type[BackendEntry]) -> dict[str, Any]:
    """The JSON schema of a description."""
    return form.model_json_schema(schema_generator=ExactSchema)


def read_added_backends(path: Path) -> list[dict[str, Any]]:
    """The entries in the file; none if there is no file yet.

    Raises:
        AddedBackendsError: the file is damaged, or cannot be read, or could not be written.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        _check_folder(path)
        return []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise AddedBackendsError(f"DYNAMIC_BACKENDS_FILE is {str(path)!r}: {reason}") from None
    _check_folder(path)
    try:
        form = _AddedForm.model_validate(read_yaml(text, {"backends", *BackendEntry.model_fields}))
    except FileFormError as error:
        raise AddedBackendsError(f"{path} {error}; {_REPAIR}") from None
    except ValidationError as error:
        problem = problem_with(error, _AddedForm, {"backends": BackendEntry})
        raise AddedBackendsError(f"{path}: {problem}; {_REPAIR}") from None
    return [as_written(entry) for entry in form.backends]


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "is not writable" if folder.is_dir() else "does not exist"
        raise AddedBackendsError(f"DYNAMIC_BACKENDS_FILE is {str(path)!r}: its directory {reason}")


def write_added_backends(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file, which only its owner can read, because entries may have keys. Raises ``OSError``.

    It is complete at any time. It is not synchronized with the disk, because that would block for too long: a file
    system orders the replacement after the content.
    """
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps({"backends": list(entries)}, indent=2, ensure_ascii=False) + "\n")
        written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise
