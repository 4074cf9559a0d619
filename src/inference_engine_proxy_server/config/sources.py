"""Where settings come from: command line, environment, ``.env``, fleet file, default; the first that has a value wins.

A further source is one more entry in :func:`load_settings`. Nothing is read on import.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dotenv.parser import parse_stream
from pydantic import ValidationError

from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.fleet_file import FleetFile, FleetFileError, read_fleet_file
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.values import meant, needed

__all__ = ["CONFIG_FILE_ORIGIN", "LoadedSettings", "SettingsError", "load_settings"]

CONFIG_FILE_ORIGIN = "config file"
_SECRETS = frozenset({"api_keys", "backend_api_key", "admin_key", "metrics_key"})
_VARIABLES = tuple(field.upper() for field in Settings.model_fields)


class SettingsError(Exception):
    """Settings that cannot be used; the text has one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and what a person may want to know about where they come from.

    Attributes:
        origins: for every variable "command line", "environment", ".env", "config file" or "default".
        warnings: lines to show; nothing in them stops the start.
    """

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def load_settings(
    environ: Mapping[str, str],
    env_file: Path,
    *,
    command_line: Mapping[str, str] | None = None,
    backends_required: bool = False,
) -> LoadedSettings:
    """The settings that these sources give; a source's empty value counts as not given, but for BLOCKED_PATHS.

    Raises:
        SettingsError: a value is not allowed, ``env_file`` or the fleet file cannot be used, or there are no BACKENDS
            although ``backends_required``.
    """
    env_file_values, problems = _read_env_file(env_file)
    sources = {"command line": command_line or {}, "environment": environ, ".env": env_file_values}
    config_file, _ = _first_of(sources, "CONFIG_FILE")
    fleet = FleetFile()
    if config_file is not None:
        try:
            fleet = read_fleet_file(Path(config_file), env_file_values | _not_empty(environ), _VARIABLES)
        except FleetFileError as error:
            problems.append(str(error))
            backends_required = False  # they may be in there
    sources[CONFIG_FILE_ORIGIN] = {"BACKENDS": ",".join(backend.url for backend in fleet.backends), **fleet.settings}

    found = {name: _first_of(sources, name) for name in _VARIABLES}
    given = {name.lower(): value for name, (value, _) in found.items() if value is not None}
    origins = {name: origin for name, (_, origin) in found.items()}
    problems += _contradictions(given)
    if backends_required and "backends" not in given:
        example = "BACKENDS=http://127.0.0.1:8080,http://127.0.0.1:8081"
        problems.append(f"BACKENDS is not set: the base URLs of the engine servers are needed, such as {example}")
    try:
        settings = Settings.model_validate(given).described_by(fleet.backends, fleet.models)
    except ValidationError as error:
        raise SettingsError([*problems, *_problems(error, origins, config_file)]) from None
    if problems:
        raise SettingsError(problems)
    warnings = (*_misspellings(env_file_values), *_doubled_paths(settings), *_unused(fleet, settings, origins))
    return LoadedSettings(settings, MappingProxyType(origins), warnings)


def _not_empty(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value.strip()}


def _first_of(sources: Mapping[str, Mapping[str, str]], name: str) -> tuple[str | None, str]:
    """The variable's value and the source that it is from."""
    for origin, values in sources.items():
        value = values[name].strip() if name in values else None
        if value or (value is not None and name == "BLOCKED_PATHS"):
            return value, origin
    return None, "default"


def _read_env_file(env_file: Path) -> tuple[dict[str, str], list[str]]:
    """The file's variables as written (``$`` is not expanded), and one line for each thing wrong with it."""
    try:
        text = env_file.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}, []
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f".env cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'}"]
    bindings = list(parse_stream(io.StringIO(text)))
    # The line itself may hold a secret, so only its number is shown.
    problems = [f".env line {binding.original.line} is not NAME=value" for binding in bindings if binding.error]
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}, problems


def _contradictions(given: Mapping[str, str]) -> list[str]:
    """Settings that need another one."""
    problems = []
    if given.get("health_details", "").lower() == "key" and not given.keys() & {"api_keys", "api_keys_file"}:
        problems.append("HEALTH_DETAILS is 'key': that needs API_KEYS or API_KEYS_FILE")
    for one, other in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if one in given and other not in given:
            problems.append(f"{one.upper()} is set and {other.upper()} is not: both are needed")
    return problems


def _problems(error: ValidationError, origins: Mapping[str, str], config_file: str | None) -> list[str]:
    schemas = Settings.model_json_schema()["properties"]
    problems = []
    for detail in error.errors():
        field = str(detail["loc"][0])
        name = field.upper()
        own_words = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None
        # Neither a key nor a password in a refused URL must end up in a log.
        shown = "***" if field in _SECRETS else re.sub(r"//[^\s,]*@", "//***@", str(detail["input"]))
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        place = f"{config_file}: settings." if origins[name] == CONFIG_FILE_ORIGIN else ""
        problems.append(f"{place}{name} is {shown!r}: {own_words or needed(name, schemas[field])}")
    return problems


def _misspellings(names: Mapping[str, str]) -> list[str]:
    """Warnings about names that look like ours; others are not, as .env is shared with Docker Compose."""
    return [
        f".env: {name} is not known; did you mean {close}?"
        for name in names
        if name not in _VARIABLES and (close := meant(name.upper(), _VARIABLES, likeness=0.85))
    ]


def _doubled_paths(settings: Settings) -> list[str]:
    return [
        f"BACKENDS: {url} ends with /v1, which requests bring with them: leave it out"
        for url in settings.backends
        if url.endswith("/v1")
    ]


def _unused(fleet: FleetFile, settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Warnings about backends of the fleet file that BACKENDS, which goes before it, does not list."""
    used = set(map(server_of, settings.backends))
    return [
        f"{settings.config_file}: {backend.url} is not used, as BACKENDS ({origins['BACKENDS']}) does not list it"
        for backend in fleet.backends
        if server_of(backend.url) not in used
    ]
