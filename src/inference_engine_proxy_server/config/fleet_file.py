"""Reads the fleet file (CONFIG_FILE).

A file with a mistake is rejected as a whole, with one line that names the place and never repeats a key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from inference_engine_proxy_server.config.file_problems import FileFormError, problem_with, read_yaml, unknown_name
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.fleet_form import NOT_IN_THE_FILE, BackendEntry, FleetForm
from inference_engine_proxy_server.config.model_form import ModelEntry, ParametersEntry
from inference_engine_proxy_server.config.model_names import problem_with_names

__all__ = ["FleetFile", "FleetFileError", "read_fleet_file"]

_FORMS: Mapping[str | int, type[BaseModel]] = {"backends": BackendEntry, "models": ModelEntry}
_ALL_FORMS: tuple[type[BaseModel], ...] = (FleetForm, *_FORMS.values(), ParametersEntry)
_NAMES = {name for form in _ALL_FORMS for name in form.model_fields}


@dataclass(frozen=True, slots=True)
class FleetFile:
    """The content of a fleet file.

    Attributes:
        backends: in the file's order.
        settings: texts by variable name.
        models: by the names that requests use.
        default_model: of requests that name none; ``None`` if the file has none.
    """

    backends: tuple[BackendConfig, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    default_model: str | None = None


class FleetFileError(Exception):
    """The fleet file cannot be used; the text is one line with the place and the reason, without any secret."""


def read_fleet_file(
    path: Path, environ: Mapping[str, str], known_settings: Collection[str], *, is_argument: bool = False
) -> FleetFile:
    """Read a YAML file.

    Args:
        environ: has the variables that ``api_key_env`` names.
        known_settings: the names of all variables.
        is_argument: the command line names the file, and not CONFIG_FILE.

    Raises:
        FleetFileError: the file cannot be read, or is invalid.
    """
    text = _text_of(path, is_argument=is_argument)
    try:
        content = read_yaml(text, _NAMES | set(known_settings))
        if content is None:  # an editor may be about to write the content
            raise FleetFileError(f"{path} is empty; if that is intended, write 'settings: {{}}'")
        form = FleetForm.model_validate(content)
    except FileFormError as error:
        raise FleetFileError(f"{path} {error}") from None
    except ValidationError as error:
        raise FleetFileError(f"{path}: {problem_with(error, FleetForm, _FORMS)}") from None
    models = {name: entry.config() for name, entry in form.models.items()}
    listed = {model for backend in form.backends for model in backend.models or ()}
    problem = problem_with_names(models, form.default_model, listed)
    if problem is not None:
        raise FleetFileError(f"{path}: {problem}")
    backends, settings = _backends(path, form, environ), _settings(path, form, known_settings)
    return FleetFile(backends, settings, models, form.default_model)


def _text_of(path: Path, *, is_argument: bool) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "there is no such file"
    raise FleetFileError(f"{path}: {reason}" if is_argument else f"CONFIG_FILE is {str(path)!r}: {reason}")


def _backends(path: Path, form: FleetForm, environ: Mapping[str, str]) -> tuple[BackendConfig, ...]:
    backends = []
    for index, entry in enumerate(form.backends):
        place = f"{path}: backends.{index}"
        try:
            backends.append(replace(entry.config(environ), place=place))
        except ValueError as error:
            raise FleetFileError(f"{place}.api_key_env: {error}") from None
    return tuple(backends)


def _settings(path: Path, form: FleetForm, known: Collection[str]) -> Mapping[str, str]:
    settings: dict[str, str] = {}
    for written, value in form.settings.items():
        name = written.upper()
        if name in NOT_IN_THE_FILE:
            raise FleetFileError(f"{path}: settings.{name} cannot be set in this file: {NOT_IN_THE_FILE[name]}")
        if name not in known:
            allowed = [name for name in known if name not in NOT_IN_THE_FILE]
            raise FleetFileError(f"{path}: settings.{unknown_name(written, name, allowed)}")
        if name in settings:
            raise FleetFileError(f"{path}: settings.{name} is set twice")
        settings[name] = value
    return settings
