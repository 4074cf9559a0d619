"""Loads the configuration from command line, environment, ``.env``, fleet file and defaults; the first value wins.

A new source is one more entry in :func:`load_settings`. Importing this module reads nothing.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotenv.parser import parse_stream
from pydantic import ValidationError

from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.environment import explanation, quoted
from inference_engine_proxy_server.config.fleet_file import FleetFile, FleetFileError, read_fleet_file
from inference_engine_proxy_server.config.service_types import is_service
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.values import closest_name, requirement

__all__ = [
    "CONFIG_FILE_ORIGIN",
    "ENV_FILE",
    "LoadedSettings",
    "SettingsError",
    "load_settings",
    "settings_files",
    "variables_of",
]

ENV_FILE = Path(".env")
"""In the working directory."""
CONFIG_FILE_ORIGIN = "config file"
_SECRETS = frozenset({"api_keys", "backend_api_key", "admin_key", "announce_key", "metrics_key", "state_url"})
_IN_QUOTES = "the quotes are part of the value, because `docker run --env-file` keeps them; remove them"
_OTHER_WORDS = {"BACKEND_URL": "BACKENDS", "BACKEND_URLS": "BACKENDS"}  # too different from the setting's name
_VARIABLES = tuple(field.upper() for field in Settings.model_fields)


class SettingsError(Exception):
    """The settings cannot be used; the text has one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """A configuration, and where it comes from.

    Attributes:
        origins: for every variable "command line", "environment", ".env", "config file" or "default".
        warnings: one line each, for people; none prevents the start.
    """

    configuration: Configuration
    origins: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def settings(self) -> Settings:
        """The settings of the configuration."""
        return self.configuration.settings


def settings_files(settings: Settings) -> tuple[Path, ...]:
    """The files that ``settings`` and their fleet come from."""
    return (ENV_FILE,) if settings.config_file is None else (ENV_FILE, Path(settings.config_file))


def variables_of(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """The variables that the configuration may name: those of the environment, and those of ``env_file``."""
    env_file_values, _ = _read_env_file(env_file)
    return {**env_file_values, **_not_empty(environ)}


def load_settings(
    environ: Mapping[str, str],
    env_file: Path,
    *,
    command_line: Mapping[str, str] | None = None,
    backends_required: bool = False,
) -> LoadedSettings:
    """Load the configuration. An empty value counts as not set, except for BLOCKED_PATHS.

    Args:
        environ: environment variables.
        env_file: may be missing.
        command_line: values by variable name.
        backends_required: at least one backend must be configured.

    Raises:
        SettingsError: a value is invalid, ``env_file`` or the fleet file cannot be used, or BACKENDS is required and
            not set.
    """
    env_file_values, problems = _read_env_file(env_file)
    in_quotes = quoted({name: environ[name] for name in _VARIABLES if name in environ})
    problems += [f"{name} is {_shown(name, environ[name])}: {_IN_QUOTES}" for name in sorted(in_quotes)]
    environ = {name: value for name, value in environ.items() if name not in in_quotes}
    sources = {"command line": command_line or {}, "environment": environ, ".env": env_file_values}
    fleet, unreadable = _read_fleet_file(sources)
    problems += unreadable
    sources[CONFIG_FILE_ORIGIN] = {"BACKENDS": ",".join(backend.url for backend in fleet.backends), **fleet.settings}
    given, origins = _given(sources)
    may_have_backends = unreadable or in_quotes & {"BACKENDS", "CONFIG_FILE"}
    problems += _missing_settings(given, backends_required=backends_required and not may_have_backends)
    misspellings = [*_misspellings("environment", environ), *_misspellings(".env", env_file_values)]
    try:
        settings = _validated(given, problems, origins)
    except SettingsError as error:
        raise SettingsError([str(error), *misspellings]) from None  # a missing setting may be a misspelt one
    warnings = (
        *misspellings,
        *_doubled_paths(settings),
        *_unused(fleet, settings, origins),
        *(_unread(env_file_values, environ) if settings.tracing else ()),
    )
    configuration = Configuration.of(settings, fleet.backends, fleet.models, fleet.default_model, origins)
    return LoadedSettings(configuration, configuration.origins, warnings)


def _read_fleet_file(sources: Mapping[str, Mapping[str, str]]) -> tuple[FleetFile, list[str]]:
    """The content of the fleet file, and why it cannot be used; both empty if ``sources`` name none."""
    file, origin = _first_of(sources, "CONFIG_FILE")
    if file is None:
        return FleetFile(), []
    variables = {**sources[".env"], **_not_empty(sources["environment"])}
    try:
        return read_fleet_file(Path(file), variables, _VARIABLES, is_argument=origin == "command line"), []
    except FleetFileError as error:
        return FleetFile(), [str(error)]


def _given(sources: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """The values that ``sources`` give, by setting, and the source of each variable."""
    found = {name: _first_of(sources, name) for name in _VARIABLES}
    values = {name.lower(): value for name, (value, _) in found.items() if value is not None}
    return values, {name: origin for name, (_, origin) in found.items()}


def _validated(given: Mapping[str, str], problems: Sequence[str], origins: Mapping[str, str]) -> Settings:
    """The settings that the texts in ``given`` mean; raises ``SettingsError`` if anything is wrong with them."""
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError([*problems, *_problems(error, origins, given.get("config_file"))]) from None
    if settings.port and settings.admin_port == settings.port:
        problems = [*problems, f"PORT and ADMIN_PORT are both {settings.port}: choose another port for one of them"]
    problems = [*problems, *_missing_packages(settings)]
    if settings.announce_key is not None and settings.announce_key == settings.admin_key:
        same = "ANNOUNCE_KEY and ADMIN_KEY are the same, so every engine could do what operators do"
        problems = [*problems, f"{same}: choose another key for one of them"]
    if settings.shadow_policy == settings.balancing_policy:
        both = f"SHADOW_POLICY and BALANCING_POLICY are both {settings.shadow_policy}"
        problems = [*problems, f"{both}: choose another policy for SHADOW_POLICY, or none to compare nothing"]
    if problems:
        raise SettingsError(problems)
    return settings


def _missing_packages(settings: Settings) -> list[str]:
    services = [url for url in settings.backends if is_service(url)]
    needs = {"zeroconf": ("mdns", f"BACKENDS: {services[0]}" if services else None)}
    needs["redis"] = ("redis", None if settings.state_url is None else f"STATE_URL is {settings.state_url}: it")
    return [
        f"{what} needs a package that is not installed: pip install 'inference-engine-proxy-server[{extra}]'"
        for package, (extra, what) in needs.items()
        if what is not None and importlib.util.find_spec(package) is None
    ]


def _not_empty(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value.strip()}


def _first_of(sources: Mapping[str, Mapping[str, str]], name: str) -> tuple[str | None, str]:
    """The variable's value and its source."""
    for origin, values in sources.items():
        value = values[name].strip() if name in values else None
        if value or (value is not None and name == "BLOCKED_PATHS"):
            return value, origin
    return None, "default"


def _read_env_file(env_file: Path) -> tuple[dict[str, str], list[str]]:
    """The file's variables as written (``$`` is not expanded), and one line for each problem in it."""
    try:
        text = env_file.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}, []
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f".env cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'}"]
    bindings = list(parse_stream(io.StringIO(text)))
    # The line may contain a secret, so only its number is shown.
    problems = [f".env line {binding.original.line} is not NAME=value" for binding in bindings if binding.error]
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}, problems


def _missing_settings(given: Mapping[str, str], *, backends_required: bool) -> list[str]:
    """One line for each setting that is missing: required as such, or by another setting."""
    problems = []
    if given.get("health_details", "").lower() == "key" and not given.keys() & {"api_keys", "api_keys_file"}:
        problems.append("HEALTH_DETAILS is 'key': set API_KEYS or API_KEYS_FILE, too")
    for one, other in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if one in given and other not in given:
            problems.append(f"{one.upper()} is set and {other.upper()} is not: set both")
    if backends_required and not given.keys() & {"backends", "announce_key", "dynamic_backends_file"}:
        example = "BACKENDS=http://127.0.0.1:8080,http://127.0.0.1:8081"
        problems.append(f"BACKENDS is not set: list the base URLs of the engine servers, such as {example}")
    return problems


def _problems(error: ValidationError, origins: Mapping[str, str], config_file: str | None) -> list[str]:
    schemas = Settings.model_json_schema()["properties"]
    problems = []
    for detail in error.errors():
        field = str(detail["loc"][0])
        name = field.upper()
        own_words = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None
        place = f"{config_file}: settings." if origins[name] == CONFIG_FILE_ORIGIN else ""
        cause = explanation(name, str(detail["input"])) if origins[name] == "environment" else None
        reason = "; ".join(filter(None, (own_words or requirement(name, schemas[field]), cause)))
        problems.append(f"{place}{name} is {_shown(name, detail['input'])}: {reason}")
    return problems


def _shown(name: str, value: object) -> str:
    """A value in an error. Keys, and passwords in rejected URLs, must not appear in a log."""
    shown = "***" if name.lower() in _SECRETS else re.sub(r"//[^\s,]*@", "//***@", str(value))
    return repr(shown if len(shown) <= 200 else f"{shown[:200]}...")


def _misspellings(origin: str, names: Mapping[str, str]) -> list[str]:
    """Warnings about names that resemble a setting. Other names are fine: other programs share the source."""
    return [
        f"{origin}: {name} is not a setting; did you mean {close}?"
        for name in names
        if name not in _VARIABLES and (close := _meant(name.upper()))
    ]


def _meant(name: str) -> str | None:
    return _OTHER_WORDS.get(name) or closest_name(name, _VARIABLES, min_similarity=0.85)


def _doubled_paths(settings: Settings) -> list[str]:
    return [
        f"BACKENDS: {url} ends with /v1, but request paths already begin with it: remove it"
        for url in settings.backends
        if url.partition("?")[0].endswith("/v1")
    ]


def _unread(env_file_values: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """Warnings about variables of OpenTelemetry in ``.env``, which its packages do not read."""
    return [
        f".env: {name} has no effect there; set it in the environment"
        for name in env_file_values
        if name.startswith("OTEL_") and name not in environ
    ]


def _unused(fleet: FleetFile, settings: Settings, origins: Mapping[str, str]) -> list[str]:
    """Warnings about backends in the fleet file that BACKENDS from another source does not list."""
    used = set(map(server_of, settings.backends))
    return [
        f"{settings.config_file}: {backend.url} is not used: BACKENDS ({origins['BACKENDS']}) does not list it"
        for backend in fleet.backends
        if server_of(backend.url) not in used
    ]
