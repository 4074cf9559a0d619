"""The fleet file: valid content, error messages, and that its schema and documentation agree with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from inference_engine_proxy_server.config.base_urls import name_of, server_of
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig, completed
from inference_engine_proxy_server.config.fleet_file import FleetFile, FleetFileError, read_fleet_file
from inference_engine_proxy_server.config.fleet_form import fleet_file_schema
from inference_engine_proxy_server.config.settings import Settings

ROOT = Path(__file__).parents[3]
EXAMPLE = (ROOT / "fleet.example.yaml").read_text()
PAGE = (ROOT / "docs" / "fleet.md").read_text()
SCHEMA = fleet_file_schema(Settings)
VARIABLES = tuple(field.upper() for field in Settings.model_fields)
KEY = "sk-planted-4b1f0c2d9e"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.yaml"


def read(file: Path, environ: Mapping[str, str] | None = None) -> FleetFile:
    return read_fleet_file(file, environ or {}, VARIABLES)


def error_of(file: Path, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(FleetFileError) as caught:
        read(file, environ)
    assert caught.value.__cause__ is None  # a traceback would print it, too
    message = str(caught.value)
    assert "planted" not in message
    assert "\n" not in message
    assert not re.search(r"pydantic|FleetForm|BackendEntry|dictionary|instance", message)
    return message


def entry_of(file: Path, entry: str) -> BackendConfig:
    file.write_text(f"backends: [{{url: http://a, {entry}}}]")
    return read(file).backends[0]


# --- valid files


def test_a_file_can_set_everything_about_a_backend(file: Path) -> None:
    file.write_text(f"""\
backends:
  - url: HTTP://LLM-1:8080/base/
    name: llm-1
    engine: llamacpp
    weight: 2
    api_key: {KEY}
    models: [a, b, a]
    capacity: 8
    max_requests_processing: 6
    max_requests_waiting: 0
  - url: http://llm-2
models:
  org/model:latest:
    balancing_policy: Rendezvous
  a: {{}}
settings:
  QUEUE_TIMEOUT_SECONDS: 60
""")

    assert read(file) == FleetFile(
        (
            BackendConfig(
                url="http://llm-1:8080/base",
                name="llm-1",
                engine="llamacpp",
                weight=2,
                api_key=SecretStr(KEY),
                models=("a", "b"),
                capacity=8,
                max_requests_processing=6,
                max_requests_waiting=0,
            ),
            BackendConfig("http://llm-2", "llm-2:80"),
        ),
        {"QUEUE_TIMEOUT_SECONDS": "60"},
        {"org/model:latest": ModelConfig("rendezvous"), "a": ModelConfig()},
    )


@pytest.mark.parametrize("text", ["settings: {}", "{}", "settings: {API_KEYS_FILE: ''}"])
def test_a_file_may_set_nothing_on_purpose(file: Path, text: str) -> None:
    file.write_text(text)

    assert read(file).backends == ()


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ("weight: 0.5", "weight", 0.5),
        ("weight: 1000", "weight", 1000),
        ("capacity: 1", "capacity", 1),
        ("tier: 100", "tier", 100),
        ("takes_any_model: true", "takes_any_model", True),
        ("stream_usage: false", "stream_usage", False),
        ("max_requests_processing: 0", "max_requests_processing", 0),
        (f"name: {'a' * 64}", "name", "a" * 64),
        ("models: ['org/model:latest']", "models", ("org/model:latest",)),
    ],
)
def test_values_at_the_limits_are_accepted(file: Path, entry: str, field: str, value: object) -> None:
    assert getattr(entry_of(file, entry), field) == value


def test_a_backend_may_merge_another_one_by_yaml_anchor(file: Path) -> None:
    file.write_text("backends: [&one {url: http://a, weight: 2}, {<<: *one, url: http://b}]")

    assert [(backend.url, backend.weight) for backend in read(file).backends] == [("http://a", 2), ("http://b", 2)]


def test_a_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    file.write_text("\ufeffbackends: [{url: http://a}]", "utf-8")

    assert read(file).backends[0].url == "http://a"


# --- keys


def test_a_key_may_come_from_a_variable(file: Path) -> None:
    file.write_text("backends: [{url: http://a, api_key_env: KEY_OF_A}]")

    assert read(file, {"KEY_OF_A": f" {KEY}\n"}).backends[0].api_key == SecretStr(KEY)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "the environment variable that it names is not set"),
        ({"planted_key": " "}, "the environment variable that it names is not set"),
        ({"planted_key": "planted é"}, "must be printable ASCII without blanks"),
    ],
)
def test_a_variable_without_a_valid_key_is_refused_without_naming_it(
    file: Path, environ: Mapping[str, str], message: str
) -> None:
    file.write_text("backends: [{url: http://a}, {url: http://b, api_key_env: planted_key}]")

    assert error_of(file, environ) == f"{file}: backends.1.api_key_env: {message}"


def test_no_representation_shows_a_key(file: Path) -> None:
    file.write_text(f"backends: [{{url: http://a, api_key: {KEY}}}]\nsettings: {{ADMIN_KEY: {KEY}}}")
    found = read(file)
    configuration = Configuration.of(Settings(backends=("http://a",)), found.backends)

    for shown in (found, found.backends[0], configuration, configuration.fleet):
        assert "planted" not in f"{shown!r} {shown}"


# --- one configuration for each backend


def test_a_backend_without_description_has_defaults_and_a_name() -> None:
    key = SecretStr("k")

    assert completed(["http://a", "http://[::1]:8080/x"], [], key) == (
        BackendConfig("http://a", "a:80", api_key=key),
        BackendConfig("http://[::1]:8080/x", "[::1]:8080/x", api_key=key),
    )


def test_a_described_backend_keeps_its_own_key_and_takes_the_configured_url() -> None:
    own = SecretStr("own")

    assert completed(["http://a:80"], [BackendConfig("http://a", "x", api_key=own)], SecretStr("k")) == (
        BackendConfig("http://a:80", "x", api_key=own),
    )


def test_every_backend_has_a_unique_name() -> None:
    urls = ["http://a:443", "https://a", "http://a", "https://a/x"]

    assert [backend.name for backend in completed(urls, [])] == ["http://a:443", "https://a", "a:80", "a:443/x"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("http://a", "http://a:80"), ("https://a/x", "https://a:443/x"), ("http://[::1]", "http://[::1]:80")],
)
def test_an_explicit_default_port_means_the_same_server(one: str, other: str) -> None:
    assert (server_of(one), name_of(one)) == (server_of(other), name_of(other))


# --- errors

WEIGHT = "must be a number above 0 and up to 1000"
CAPACITY = "must be a whole number from 1 to 1000000"
BLANK = "must have a value; to leave it unset, remove the line"
NAME = "must be up to 64 letters, digits, '.', '_' or '-'"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("weight: 0", f"weight: {WEIGHT}"),
        ("weight: 1000.5", f"weight: {WEIGHT}"),
        ("weight: .nan", f"weight: {WEIGHT}"),
        ("weight: '2'", f"weight: {WEIGHT}"),
        ("weight: yes", f"weight: {WEIGHT}"),
        ("weight: ", f"weight: {BLANK}"),
        ("capacity: 0", f"capacity: {CAPACITY}"),
        ("tier: 0", "tier: must be a whole number from 1 to 100"),
        ("tier: 1.5", "tier: must be a whole number from 1 to 100"),
        ("takes_any_model: 1", "takes_any_model: must be true or false"),
        ("external: true", "external: true requires 'models', because the proxy does not ask for them"),
        (
            "takes_any_model: true, accepts_unlisted_models: false",
            "takes_any_model: true contradicts accepts_unlisted_models: false",
        ),
        ("capacity: 1.5", f"capacity: {CAPACITY}"),
        ("max_requests_processing: -1", "max_requests_processing: must be a whole number from 0 to 1000000"),
        ("max_requests_waiting: many", "max_requests_waiting: must be a whole number from 0 to 1000000"),
        ("name: a b", f"name: {NAME}"),
        ("name: ''", f"name: {NAME}"),
        (f"name: {'a' * 65}", f"name: {NAME}"),
        ("name: 1", "name: must be text"),
        ("engine: 'llama cpp'", f"engine: {NAME}"),
        ("models: a", "models: must be a list"),
        ("models: []", "models: must not be empty; to leave it unset, remove the line"),
        ("models: [1]", "models.0: must be text"),
        ("models: ['']", "models.0: must not be empty"),
        ("models: ", f"models: {BLANK}"),
        ("api_key: ", f"api_key: {BLANK}"),
        ("api_key: ''", "api_key: must be printable ASCII without blanks"),
        ("api_key: planted secret", "api_key: must be printable ASCII without blanks"),
        ("api_key: [planted]", "api_key: must be text"),
        ("api_key_env: sk-planted", "api_key_env: must be the name of an environment variable"),
        (f"api_key: {KEY}, api_key_env: A", "set 'api_key' or 'api_key_env', not both"),
        ("weigth: 2", "weigth is unknown; did you mean weight?"),
        ("max_request_processing: 2", "max_request_processing is unknown; did you mean max_requests_processing?"),
        ("key: planted", "key is unknown; did you mean api_key?"),
        ("tls: planted", "tls is unknown; use one of: url, name, engine, weight, "),
        (f"{KEY}: x", "*** is unknown; use one of: url, name, "),
    ],
)
def test_an_error_in_a_backend_is_one_line_with_its_place(file: Path, entry: str, message: str) -> None:
    file.write_text(f"backends: [{{url: http://b}}, {{url: http://a, {entry}}}]")

    error_text = error_of(file)

    place = (
        "backends.1: "
        if message.startswith(("set '", "takes_any_model: true c", "external: true r"))
        else "backends.1."
    )
    assert error_text.startswith(f"{file}: {place}{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backends: [{name: a}]", "backends.0.url is missing"),
        ("backends: [{ulr: http://a}]", "backends.0.ulr is unknown; did you mean url?"),
        ("backends: [{url: llm-1:8080}]", "backends.0.url: 'llm-1:8080' must begin with http:// or https://"),
        (
            "backends: [{url: 'http://x:planted@a'}]",
            "backends.0.url: a URL with a user name or password is not supported",
        ),
        ("backends: [{url: http://a}, {url: 'http://A:80/'}]", "backends: 'http://a:80' is listed twice"),
        ("backends: [{url: http://a, name: x}, {url: http://b, name: x}]", "backends: two backends have the name x"),
        ("backends: http://a", "backends: must be a list"),
        ("backends: []", "backends: must not be empty; to leave it unset, remove the line"),
        ("backends: ", "backends: must be a list"),
        ("backends: [http://a]", "backends.0: must be a mapping"),
        ("backend: [{url: http://a}]", "backend is unknown; did you mean backends?"),
        ("x: 1", "x is unknown; use one of: backends, default_model, models, settings"),
        (f"{KEY}: 1", "*** is unknown; use one of: backends, default_model, models, settings"),
        (
            "models: {org/a-long-name:latest: {balancing_policy: rendevous}}",
            "models.org/a-long-name:latest.balancing_policy: must be one of least_requests, expected_time, ",
        ),
        ("models: {m: {balancing_policy: 1}}", "models.m.balancing_policy: must be one of least_requests, "),
        ("models: {m: {balancing_policy: }}", f"models.m.balancing_policy: {BLANK}"),
        ("models: {m: {balancing: x}}", "models.m.balancing is unknown; did you mean balancing_policy?"),
        (
            "models: {m: {x: 1}}",
            "models.m.x is unknown; use one of: aliases, hidden_aliases, serves_as, parameters, "
            "fallbacks, fallback_after_seconds, balancing_policy",
        ),
        ("models: {m: }", "models.m: must be a mapping"),
        ("models: {'a planted key': 1}", "models.***: must be a mapping"),
        ("models: {'': {}}", "models.'': must not be empty"),
        ("models: [m]", "models: must be a mapping"),
        ("[]", "must be a mapping that begins with 'backends:', 'default_model:', 'models:' or 'settings:'"),
        (KEY, "must be a mapping that begins with 'backends:', 'default_model:', 'models:' or 'settings:'"),
        (
            "backends: [{url: http://a, accepts_unlisted_models: maybe}]",
            "backends.0.accepts_unlisted_models: must be true or false",
        ),
        ("settings: [PORT]", "settings: must be a mapping"),
        ("settings: ", "settings: must be a mapping"),
        ("settings: {PORT: }", "settings.PORT: must be text, a number, true or false, or a list of these"),
        ("settings: {PORT: {a: b}}", "settings.PORT: must be text, a number, true or false, or a list of these"),
        (
            "settings: {API_KEYS_FILE: 2027-01-31}",
            "settings.API_KEYS_FILE: must be text, a number, true or false, or a list of these",
        ),
        ("settings: {QUEUE_TIMEOUT: 1}", "settings.QUEUE_TIMEOUT is unknown; did you mean QUEUE_TIMEOUT_SECONDS?"),
        ("settings: {log-level: info}", "settings.log-level is unknown; did you mean LOG_LEVEL?"),
        (
            "settings: {HF_TOKEN: planted}",
            "settings.HF_TOKEN is unknown; `inference-proxy settings` lists all names",
        ),
        (f"settings: {{{KEY}: 1}}", "settings.*** is unknown; `inference-proxy settings` lists all names"),
        ("settings: {PORT: 1, port: 2}", "settings.PORT is set twice"),
        (
            "settings: {backends: http://a}",
            "settings.BACKENDS cannot be set in this file: use the file's list 'backends'",
        ),
        ("settings: {CONFIG_FILE: a}", "settings.CONFIG_FILE cannot be set in this file: it names this file"),
        (
            "settings: {model: a}",
            "settings.MODEL cannot be set in this file: only Docker Compose uses it, and reads it from .env",
        ),
        ("settings: {1: a}", "settings.1: must be text"),
    ],
)
def test_an_error_in_the_file_is_one_line_with_its_place(file: Path, text: str, message: str) -> None:
    file.write_text(text)

    assert error_of(file).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", " is empty; if that is intended, write 'settings: {}'", id="empty"),
        pytest.param("# nothing yet\n", " is empty; if that is intended, write 'settings: {}'", id="comment"),
        pytest.param(
            f"backends: [\n{KEY}",
            " is not YAML, line 2: expected ',' or ']', but got '<stream end>' "
            "(a comma or a closing bracket is missing)",
            id="bracket left open",
        ),
        pytest.param(
            f"backends: !{KEY} x",
            " is not YAML, line 1: could not determine a constructor for the tag '***' "
            "(text that begins with ! must be quoted)",
            id="unknown tag",
        ),
        pytest.param(
            "? [a]\n: b", " is not YAML, line 1: found unhashable key (a name must be text)", id="list as a name"
        ),
        pytest.param(
            "backends: 2027-02-31",
            " is not YAML, or contains an impossible date or number: day is out of range for month",
            id="no such day",
        ),
        pytest.param("[" * 5000, " is not YAML, or is nested too deeply", id="endless nesting"),
        pytest.param("backends: []\n\nbackends: []", " repeats the name backends, line 3", id="two lists"),
        pytest.param("backends:\n- url: http://a\n  url: http://b", " repeats the name url, line 3", id="two URLs"),
    ],
)
def test_an_invalid_file_is_refused_without_repeating_its_content(file: Path, text: str, message: str) -> None:
    file.write_text(text)

    assert error_of(file) == f"{file}{message}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "No such file or directory"), (".", "Is a directory"), ("a\0b", "there is no such file")],
)
def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name

    assert error_of(path) == f"CONFIG_FILE is {str(path)!r}: {reason}"


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"backends: \xff\xfe")

    assert error_of(file) == f"CONFIG_FILE is {str(file)!r}: it is not UTF-8 text"


PIECES = [
    "backends:",
    "settings:",
    "models:",
    "balancing_policy: ",
    "\n",
    "  ",
    "- ",
    "url: ",
    "http://a",
    "weight: ",
    "2",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "port: ",
]
KEYS_OF_YAML = [
    "models: ",
    "&a ",
    "*a",
    "<<: ",
    "'",
    '"',
    "#",
    "? ",
    "!!set ",
    "null",
    "- - ",
    "2027-01-31",
    "1e9999",
    "\t",
]


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from(PIECES + KEYS_OF_YAML), max_size=30).map("".join).map(str.encode)
)
def test_any_content_gives_a_fleet_or_one_line_of_error(content: bytes) -> None:
    class Written(type(Path())):  # type: ignore[misc]  # a file with the given content
        def read_text(self, *_: object, **__: object) -> str:
            return content.decode("utf-8")

    error_text = ""
    try:
        assert isinstance(read(Written("fleet.yaml")), FleetFile)
    except FleetFileError as error:
        error_text = str(error)

    assert len(error_text.splitlines()) <= 1


# --- schema and documentation


def is_valid(text: str) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text)))


def test_the_published_schema_is_valid_and_matches_the_code() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    # To update it: inference-proxy fleet schema > docs/fleet.schema.json
    assert json.loads((ROOT / "docs" / "fleet.schema.json").read_text()) == SCHEMA


def test_the_example_is_valid_and_follows_the_schema(file: Path) -> None:
    file.write_text(EXAMPLE)

    assert len(read(file).backends) == 2
    models = read(file).models
    assert {name: (config.balancing_policy, config.serves_as) for name, config in models.items()} == {
        "qwen3-14b": ("rendezvous", None),
        "qwen3-14b-think": (None, "qwen3-14b"),
    }
    assert read(file).default_model == "qwen3-14b"
    assert is_valid(EXAMPLE)
    uncommented = EXAMPLE.replace("# api_key_env", "api_key_env")
    file.write_text(uncommented)
    assert read(file, {"LLM_2_KEY": KEY}).backends[1].api_key == SecretStr(KEY)
    assert is_valid(uncommented)


def test_the_page_shows_the_example_unchanged() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)

    assert EXAMPLE.endswith(f"\n\n{shown}")


def test_the_page_documents_exactly_the_fields_of_backends_and_models() -> None:
    forms = SCHEMA["$defs"]
    fields: dict[str, Any] = forms["BackendEntry"]["properties"] | forms["ModelEntry"]["properties"]

    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(fields)
    assert all(field["description"].endswith(".") for field in fields.values())


@pytest.mark.parametrize(
    "text",
    [
        "backends: [{url: 'HTTP://a', name: a-1, engine: vllm, weight: 0.5, models: [a], capacity: 1}]",
        "backends: [{url: http://a, api_key: x, max_requests_processing: 0, max_requests_waiting: 0}]",
        "backends: [{url: http://a, api_key_env: X}]",
        "models: {org/m: {balancing_policy: expected_time}, a: {}}",
        "settings: {PORT: 0, port_: 1, blocked_paths: [a], TRUSTED_PROXIES: private, API_KEYS: [a], ACCESS_LOG: no}",
        "{}",
    ],
)
def test_the_schema_accepts_valid_files(text: str) -> None:
    assert is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        *(f"backends: [{{url: http://a, {entry}}}]" for entry in (
            "weight: 0", "weight: 1001", "weight: '2'", "weight: null", "capacity: 0", "capacity: 1.5", "name: a b",
            "engine: ''", "models: a", "models: []", "models: [1]", "models: ['']", "api_key: null", "api_key_env: a-b",
            "api_key: a, api_key_env: b", "weigth: 2", "max_requests_waiting: -1",
        )),
        "backends: []", "backends: [{name: a}]", "backends: [{url: a}]", "backend: []", "settings: []", "[]",
        "models: []", "models: {m: {balancing_policy: fast}}", "models: {m: {x: 1}}", "models: {m: null}",
        "settings: {BACKENDS: a}", "settings: {CONFIG_FILE: a}", "settings: {MODEL: a}",
        "settings: {PROT: 1}", "settings: {PORT: 70000}",
        "settings: {QUEUE_TIMEOUT_SECONDS: 0}", "settings: {PORT: null}", "settings: {LOG_LEVEL: loud}",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_program_refuses(file: Path, text: str) -> None:
    file.write_text(text)

    assert not is_valid(text)
    if not re.search("70000|SECONDS: 0|loud", text):  # reading this file does not validate setting values
        error_of(file)
