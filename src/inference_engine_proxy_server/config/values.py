"""The types of setting values: how each is parsed, validated, described in errors, and written back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr

from inference_engine_proxy_server.config.api_keys import ApiKey, keys_by_digest, parse_key
from inference_engine_proxy_server.config.base_urls import distinct_backend_urls
from inference_engine_proxy_server.config.state_url import StateUrl, as_state_prefix, as_state_url

__all__ = [
    "ApiKeys",
    "AsLogLevel",
    "BalancingPolicy",
    "BaseUrls",
    "HostName",
    "InLowerCase",
    "Networks",
    "PathRule",
    "PathRules",
    "Secret",
    "StateLocation",
    "StatePrefix",
    "Statuses",
    "as_path_rules",
    "as_secret",
    "as_variable",
    "closest_name",
    "requirement",
]

_HOST = r"^([0-9A-Za-z._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*)$"  # two colons make it IPv6, not "address:port"
_PRIVATE_NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
_PATH_RULE = re.compile(r"(?:([A-Za-z]+)\s+)?(/[^\s*?#%,]*)(\*?)")


@dataclass(frozen=True, slots=True)
class PathRule:
    """A rule that blocks requests.

    Attributes:
        method: in upper case; ``None`` for every method.
        path: percent-decoded, with a leading slash.
        is_prefix: the rule covers every path that begins with ``path``.
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


def _as_base_urls(value: object) -> tuple[str, ...]:
    urls = distinct_backend_urls(map(str, _items(value)))
    if isinstance(value, str) and not urls:
        raise ValueError("must list at least one base URL like http://llm-1:8080")
    return urls


def _as_path_rule(item: object) -> PathRule:
    if isinstance(item, PathRule):
        return item
    rule = _PATH_RULE.fullmatch(str(item))
    if rule is None:
        raise ValueError(f"{item!r} is not a rule like /sleep, POST /props or POST /slots/* (paths without % escapes)")
    return PathRule(rule[1].upper() if rule[1] else None, rule[2], bool(rule[3]))


def as_path_rules(value: object) -> tuple[PathRule, ...]:
    """Rules from a text with commas, or from a sequence."""
    return tuple(_as_path_rule(item) for item in _items(value))


def _as_api_keys(value: object) -> tuple[ApiKey, ...]:
    keys = [item if isinstance(item, ApiKey) else parse_key(str(item)) for item in _items(value)]
    return tuple(keys_by_digest(keys).values())


def _as_statuses(value: object) -> tuple[int, ...]:
    statuses = [str(item) for item in _items(value)]
    for status in statuses:
        if not re.fullmatch("[45][0-9][0-9]", status):
            raise ValueError(f"{status!r} is not a status from 400 to 599")
    return tuple(sorted({int(status) for status in statuses}))


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


def _as_log_level(value: object) -> object:
    level = _in_lower_case(value)
    return "warning" if level == "warn" else level


def as_secret(value: Any) -> Any:
    """The key, unchanged; raises ``ValueError``, without repeating the key, if no header can carry it."""
    if isinstance(value, str) and not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("must be printable ASCII without blanks")
    return value


ApiKeys = Annotated[tuple[ApiKey, ...], BeforeValidator(_as_api_keys)]
BaseUrls = Annotated[tuple[str, ...], BeforeValidator(_as_base_urls)]
BalancingPolicy = Annotated[
    Literal["least_requests", "expected_time", "power_of_two", "round_robin", "rendezvous"],
    BeforeValidator(_in_lower_case),
]
HostName = Annotated[str, Field(pattern=_HOST)]
AsLogLevel = BeforeValidator(_as_log_level)
InLowerCase = BeforeValidator(_in_lower_case)
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_as_networks)]
PathRules = Annotated[tuple[PathRule, ...], BeforeValidator(as_path_rules)]
StateLocation = Annotated[StateUrl, BeforeValidator(as_state_url)]
StatePrefix = Annotated[str, BeforeValidator(as_state_prefix)]
Statuses = Annotated[tuple[int, ...], BeforeValidator(_as_statuses)]
Secret = Annotated[SecretStr, BeforeValidator(as_secret)]


def as_variable(value: object) -> str:
    """A setting's value as it is written in the environment, secrets hidden; ``None`` is the empty string."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return ",".join(map(as_variable, value))
    if isinstance(value, ApiKey):
        return f"{value.name}:***"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)


def closest_name(name: str, known: Iterable[str], min_similarity: float) -> str | None:
    """The known name that ``name`` probably misspells; ``None`` when none is similar enough.

    Args:
        name: as written.
        known: correct names.
        min_similarity: from 0 to 1.
    """
    full = list(known)
    # Missing units and kinds are likely mistakes, but too long for the similarity, and two swapped letters are too much
    # for it in a short name. One word alone, such as CONFIG, is too common to be a mistake.
    shortened = {short: name for name in full if "_" in (short := re.sub("_(SECONDS|BYTES|FILE)$", "", name))}
    candidates = shortened | {name: name for name in full}
    if swapped := next((one for one in full if _has_two_letters_swapped(name, one)), None):
        return swapped
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=min_similarity)
    return candidates[close[0]] if close else None


def _has_two_letters_swapped(one: str, other: str) -> bool:
    """Whether two neighbouring letters are the only difference."""
    differing = [at for at, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1]
    if len(one) != len(other) or len(differing) != 2 or differing[1] - differing[0] != 1:
        return False
    at = differing[0]
    return one[at : at + 2] == other[at + 1] + other[at]


def requirement(name: str, schema: Mapping[str, Any]) -> str:
    """What the variable ``name`` must be, in words, from its part of the JSON schema."""
    schema = schema.get("anyOf", [schema])[0]  # the second is null
    if "enum" in schema:
        return f"must be one of {', '.join(schema['enum'])}"
    if "pattern" in schema:
        return "must be an IP address or a host name, without a port"
    if schema["type"] not in {"integer", "number"}:
        return "must be true or false"
    unit = next((f" of {unit}" for unit in ("seconds", "bytes") if name.endswith(f"_{unit.upper()}")), "")
    low = f"from {schema['minimum']} to" if "minimum" in schema else f"above {schema['exclusiveMinimum']} and up to"
    return f"must be a {'whole ' * (schema['type'] == 'integer')}number{unit} {low} {schema['maximum']}"
