"""Every setting: its type, default, range and meaning, and where its value comes from.

The name of a variable is the field's name in capitals. Sources are asked in order, the first that has a
value wins: command line, environment, ``.env``, default. A further source is one more entry in
:func:`load_settings`. Nothing is read on import, and ``Settings(port=0)`` reads nothing at all.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from inference_engine_proxy_server.api_keys import ApiKey, keys_by_digest, parse_key

__all__ = ["LoadedSettings", "PathRule", "Settings", "SettingsError", "as_variable", "load_settings"]

# Control endpoints that change an engine for everybody behind it, or that reach past it.
# Sources: all routes of vLLM 0.32.0 (vllm/entrypoints; /server_info tells its environment); llama.cpp
# tools/server/server.cpp at 00dd081 (built-in tools and the CORS proxy are off unless asked for there; /v1/streams
# lists other people's conversations).
_CONTROL_ENDPOINTS = (
    "/sleep, /wake_up, /pause, /resume, /abort_requests, /inference/v1/abort_requests, /collective_rpc,"
    "/server_info, /fault_tolerance/apply, /release_kv_cache_memory, /reset_prefix_cache, /reset_mm_cache,"
    "/reset_encoder_cache, /scale_elastic_ep, /start_profile, /stop_profile,"
    "/v1/load_lora_adapter, /v1/unload_lora_adapter, /init_weight_transfer_engine, /shutdown_weight_transfer_engine,"
    "/start_weight_update, /start_draft_weight_update, /update_weights, /finish_weight_update,"
    "/update_weight_version, /weight_checker,"
    "POST /slots/*, POST /props, POST /models*, DELETE /models*, POST /lora-adapters, /tools, /cors-proxy, /v1/streams"
)

_BASE_URL = re.compile(
    r"(https?)://([\w.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?((?:/[\w.~!$&'()*+;=:%-]*)*)", re.ASCII | re.IGNORECASE
)
_HOST = r"^([0-9A-Za-z._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*)$"  # two colons: IPv6, not "address:port"
_PRIVATE_NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
_PATH_RULE = re.compile(r"(?:([A-Za-z]+)\s+)?(/[^\s*?#%,]*)(\*?)")


class SettingsError(Exception):
    """Settings that cannot be used; the text has one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class PathRule:
    """Requests that are not passed on.

    Attributes:
        method: upper case; ``None`` means every method.
        path: percent-decoded, begins with a slash.
        is_prefix: every path that begins with ``path`` is meant, not only ``path`` itself.
    """

    method: str | None
    path: str
    is_prefix: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}{'*' * self.is_prefix}".removeprefix("None ")


def _items(value: object) -> list[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _as_base_url(item: object) -> str:
    text = str(item)
    if "@" in text:
        raise ValueError("a URL with a user name or password is not supported")
    if not text.lower().startswith(("http://", "https://")):
        raise ValueError(f"{text!r} must begin with http:// or https://")
    if "?" in text or "#" in text:
        raise ValueError(f"{text!r} must not have a query (?) or fragment (#)")
    url = _BASE_URL.fullmatch(text)
    if url is None or (url[3] and not 1 <= int(url[3]) <= 65535):
        raise ValueError(f"{text!r} is not a base URL like http://llm-1:8080")
    port = f":{url[3]}" if url[3] else ""
    return f"{url[1].lower()}://{url[2].lower()}{port}{url[4].rstrip('/')}"


def _as_backends(value: object) -> tuple[str, ...]:
    urls = tuple(_as_base_url(item) for item in _items(value))
    if isinstance(value, str) and not urls:
        raise ValueError("at least one base URL like http://llm-1:8080 is needed")
    # http://a and http://a:80 are one server: counted twice, it would get twice its share.
    seen: set[tuple[str, str | None, int, str]] = set()
    for url in urls:
        parts = urlsplit(url)
        place = (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.path)
        if place in seen:
            raise ValueError(f"{url!r} is there twice")
        seen.add(place)
    return urls


def _as_path_rule(item: object) -> PathRule:
    if isinstance(item, PathRule):
        return item
    rule = _PATH_RULE.fullmatch(str(item))
    if rule is None:
        raise ValueError(f"{item!r} is not a rule like /sleep, POST /props or POST /slots/* (paths without % escapes)")
    return PathRule(rule[1].upper() if rule[1] else None, rule[2], bool(rule[3]))


def _as_path_rules(value: object) -> tuple[PathRule, ...]:
    return tuple(_as_path_rule(item) for item in _items(value))


def _as_api_keys(value: object) -> tuple[ApiKey, ...]:
    keys = [item if isinstance(item, ApiKey) else parse_key(str(item)) for item in _items(value)]
    return tuple(keys_by_digest(keys).values())


def _as_networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    networks: list[IPv4Network | IPv6Network] = []
    for item in _items(value):
        if item == "private":
            networks.extend(map(ip_network, _PRIVATE_NETWORKS))
        elif isinstance(item, (IPv4Network, IPv6Network)):
            networks.append(item)
        else:
            try:
                networks.append(ip_network(str(item)))
            except ValueError:
                raise ValueError(f"{item!r} is not an address, a network like 10.0.0.0/8, or 'private'") from None
    return tuple(networks)


def _in_lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _as_secret(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("a key has no blanks and no letters beyond ASCII")
    return value


_Secret = Annotated[SecretStr, BeforeValidator(_as_secret)]
_SECRETS = frozenset({"api_keys", "backend_api_key", "admin_key", "metrics_key"})
_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_SecondsOrZero = Annotated[float, Field(ge=0, le=86_400)]
_Requests = Annotated[int, Field(ge=0, le=1_000_000)]


class Settings(BaseModel):
    """All settings of one proxy process, checked; numbers are in the unit that their name ends with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    port: Annotated[int, Field(ge=0, le=65_535)] = 8888
    """TCP port to listen on; 0 lets the operating system choose a free one."""
    host: Annotated[str, Field(pattern=_HOST)] = "127.0.0.1"
    """IP address or host name to listen on; 0.0.0.0 is every IPv4 address of this machine."""
    backends: Annotated[tuple[str, ...], BeforeValidator(_as_backends)] = ()
    """Base URLs of the engine servers, separated by commas; `serve` needs at least one."""
    model_dir: str | None = None
    """Directory with the model files; only the Compose files use it, to start the engines."""
    model: str | None = None
    """Model that the engines load; only the Compose files use it, to start the engines."""

    metrics_cache_ttl_seconds: _Seconds = 3
    """Seconds between two refreshes of every backend's state."""
    backend_timeout_seconds: _Seconds = 300
    """Longest wait in seconds for a backend's first response byte, and for each next byte of a stream."""
    backend_connect_timeout_seconds: _Seconds = 2
    """Longest wait in seconds for a new connection to a backend."""
    max_allowed_request_queue: _Requests = 6
    """Requests in process on a llama.cpp backend above which it is busy and gets no new ones."""
    max_allowed_deferred: _Requests = 3
    """Requests waiting inside a llama.cpp backend above which it is busy and gets no new ones."""
    backend_idle_connection_seconds: _SecondsOrZero = 3
    """Seconds for which an idle connection to a backend may be used again; 0 opens a new one for every request."""
    llamacpp_keep_alive: bool = False
    """Whether connections to llama.cpp are used again, although each idle one holds one of its HTTP threads for 5 s."""

    max_request_body_bytes: Annotated[int, Field(ge=1, le=2**40)] = 67_108_864
    """Largest request body in bytes; a larger one is answered with 413."""
    max_request_header_bytes: Annotated[int, Field(ge=256, le=2**24)] = 32_768
    """Largest header section of a request in bytes; a larger one is answered with 431."""
    max_request_line_bytes: Annotated[int, Field(ge=64, le=2**20)] = 8192
    """Longest request line in bytes; a longer one is answered with 414."""
    max_request_header_count: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Most header fields of one request; more are answered with 431."""

    client_header_timeout_seconds: _Seconds = 10
    """Longest time in seconds from a request's first byte to the end of its header section."""
    client_body_timeout_seconds: _Seconds = 30
    """Longest pause in seconds between two pieces of a request's body."""
    client_keep_alive_seconds: _Seconds = 75
    """Seconds for which a client's idle connection stays open."""
    client_write_stall_seconds: _Seconds = 60
    """Seconds without progress after which a client that does not read its reply is cut off."""

    api_keys: Annotated[tuple[ApiKey, ...], BeforeValidator(_as_api_keys)] = ()
    """Keys of clients, `NAME:SECRET` separated by commas; with a key set, every request to an engine needs one."""
    api_keys_file: str | None = None
    """YAML file with keys of clients and their limits; it is read again when it changes."""
    backend_api_key: _Secret | None = None
    """Key that this proxy shows to every backend, in place of the client's own."""
    forward_client_key: bool = False
    """Whether a client's key goes on to backends although it was checked here."""
    admin_key: _Secret | None = None
    """Key for everything below /admin/; without one it is off."""
    admin_port: Annotated[int | None, Field(ge=0, le=65_535)] = None
    """TCP port that serves /admin/ and /metrics instead of PORT; without one PORT does."""
    metrics_key: _Secret | None = None
    """Key for /metrics; without one everybody may read it."""
    health_details: Annotated[Literal["all", "key"], BeforeValidator(_in_lower_case)] = "all"
    """Who sees the addresses of backends in /health: all, or only who has a key of a client."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_as_networks)] = ()
    """Addresses or networks of proxies in front whose X-Forwarded-* headers count; `private` for all private ones."""
    tls_cert_file: str | None = None
    """PEM file with the certificate and its chain; with it clients reach this proxy over HTTPS only."""
    tls_key_file: str | None = None
    """PEM file with the certificate's private key."""

    blocked_paths: Annotated[tuple[PathRule, ...], BeforeValidator(_as_path_rules)] = _as_path_rules(_CONTROL_ENDPOINTS)
    """Rules `[METHOD ]/path[*]`, separated by commas, for requests that are answered with 403; empty lifts them all."""
    backend_header: bool = True
    """Whether replies name their backend in the header x-backend."""

    access_log: bool = True
    """Whether every request is logged as one line."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_in_lower_case)] = "info"
    """Least important kind of message that is logged."""
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_in_lower_case)] = "text"
    """Log lines as text for people or as one JSON object each for programs."""
    drain_timeout_seconds: _SecondsOrZero = 300
    """Seconds after SIGTERM in which running requests may end by themselves."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and what a person may want to know about where they come from.

    Attributes:
        origins: for every variable "command line", "environment", ".env" or "default".
        warnings: lines to show; nothing in them stops the start.
    """

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def as_variable(value: object) -> str:
    """A setting's value as one would write it in the environment; ``None`` is the empty string."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(as_variable, value))
    if isinstance(value, ApiKey):
        return f"{value.name}:***"
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


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


def _misspellings(names: Mapping[str, str]) -> list[str]:
    """Warnings about names that look like ours; others are not, as .env is shared with Docker Compose."""
    known = {field.upper(): field.upper() for field in Settings.model_fields}
    # A forgotten unit is the likeliest slip, but too many letters for the comparison.
    candidates = {re.sub("_(SECONDS|BYTES)$", "", name): name for name in known} | known
    return [
        f".env: {name} is not known; did you mean {candidates[close[0]]}?"
        for name in names
        if name not in known and (close := difflib.get_close_matches(name.upper(), candidates, n=1, cutoff=0.85))
    ]


def _needed(name: str, schema: Mapping[str, Any]) -> str:
    """What the variable ``name`` accepts, in words, from its part of the JSON schema."""
    schema = schema.get("anyOf", [schema])[0]  # the other one is null
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])} is needed"
    if "pattern" in schema:
        return "an IP address or a host name, without a port, is needed"
    if schema["type"] not in {"integer", "number"}:
        return "true or false is needed"
    unit = next((f" of {unit}" for unit in ("seconds", "bytes") if name.endswith(f"_{unit.upper()}")), "")
    low = f"from {schema['minimum']} to" if "minimum" in schema else f"above {schema['exclusiveMinimum']} and up to"
    return f"a {'whole ' * (schema['type'] == 'integer')}number{unit} {low} {schema['maximum']} is needed"


def _problems(error: ValidationError) -> list[str]:
    schemas = Settings.model_json_schema()["properties"]
    problems = []
    for detail in error.errors():
        field = str(detail["loc"][0])
        own_words = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None
        # Neither a key nor a password in a refused URL must end up in a log.
        shown = "***" if field in _SECRETS else re.sub(r"//[^\s,]*@", "//***@", str(detail["input"]))
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        problems.append(f"{field.upper()} is {shown!r}: {own_words or _needed(field.upper(), schemas[field])}")
    return problems


def load_settings(
    environ: Mapping[str, str],
    env_file: Path,
    *,
    command_line: Mapping[str, str] | None = None,
    backends_required: bool = False,
) -> LoadedSettings:
    """The settings that these sources give; a source's empty value counts as not given, but for BLOCKED_PATHS.

    Raises:
        SettingsError: a value is not allowed, ``env_file`` cannot be read, or there are no BACKENDS although
            ``backends_required``.
    """
    env_file_values, problems = _read_env_file(env_file)
    sources = {"command line": command_line or {}, "environment": environ, ".env": env_file_values}
    given: dict[str, str] = {}
    origins: dict[str, str] = {}
    for field in Settings.model_fields:
        name = field.upper()
        origins[name] = "default"
        for origin, values in sources.items():
            value = values[name].strip() if name in values else None
            if value or (value is not None and name == "BLOCKED_PATHS"):
                given[field], origins[name] = value, origin
                break
    if backends_required and "backends" not in given:
        example = "BACKENDS=http://127.0.0.1:8080,http://127.0.0.1:8081"
        problems.append(f"BACKENDS is not set: the base URLs of the engine servers are needed, such as {example}")
    if given.get("health_details", "").lower() == "key" and not given.keys() & {"api_keys", "api_keys_file"}:
        problems.append("HEALTH_DETAILS is 'key': that needs API_KEYS or API_KEYS_FILE")
    for one, other in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if one in given and other not in given:
            problems.append(f"{one.upper()} is set and {other.upper()} is not: both are needed")
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError(problems + _problems(error)) from None
    if problems:
        raise SettingsError(problems)
    doubled = [
        f"BACKENDS: {url} ends with /v1, which requests bring with them: leave it out"
        for url in settings.backends
        if url.endswith("/v1")
    ]
    return LoadedSettings(settings, MappingProxyType(origins), (*_misspellings(env_file_values), *doubled))
