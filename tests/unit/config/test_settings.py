"""Settings: their sources, values, and error messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inference_engine_proxy_server.config.settings import PathRule, Settings, as_variable
from inference_engine_proxy_server.config.sources import SettingsError, load_settings

NO_FILE = Path("/nonexistent/.env")
EVERY_VARIABLE = [field.upper() for field in Settings.model_fields]


def from_environment(environ: Mapping[str, str]) -> Settings:
    return load_settings(environ, NO_FILE).settings


def problems_with(environ: Mapping[str, str], env_file: Path = NO_FILE) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, env_file)
    return str(caught.value).split("\n")


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_without_any_value_the_documented_defaults_apply() -> None:
    settings = from_environment({})

    assert settings == Settings()
    assert (settings.port, settings.host, settings.backends) == (8888, "127.0.0.1", ())
    assert (settings.model_dir, settings.model) == (None, None)
    assert (settings.metrics_cache_ttl_seconds, settings.backend_timeout_seconds) == (3, 300)
    assert (settings.max_allowed_request_queue, settings.max_allowed_deferred) == (None, 3)
    assert settings.llamacpp_keep_alive is False
    assert settings.backend_header is True


def test_settings_created_in_code_read_no_environment(monkeypatch: pytest.MonkeyPatch, env_file: Path) -> None:
    monkeypatch.setenv("PORT", "1")
    env_file.write_text("PORT=2\n")
    monkeypatch.chdir(env_file.parent)

    assert Settings().port == 8888
    assert Settings(backends=("http://127.0.0.1:1",), port=0).backends == ("http://127.0.0.1:1",)


def test_rules_created_in_code_are_kept_unchanged() -> None:
    rules = (PathRule("GET", "/a", is_prefix=True), PathRule(None, "/b", is_prefix=False))

    assert Settings(blocked_paths=rules).blocked_paths == rules
    assert list(map(str, rules)) == ["GET /a*", "/b"]


def test_settings_are_frozen_and_have_no_unknown_names() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="not permitted"):
        Settings(prot=1)  # type: ignore[call-arg]


def test_the_first_source_with_a_value_wins_and_is_named(env_file: Path) -> None:
    env_file.write_text("PORT=1\nHOST=from-file\nMODEL=from-file\n")
    environ = {"PORT": "2", "HOST": "from-environment", "LOG_LEVEL": "error"}

    loaded = load_settings(environ, env_file, command_line={"PORT": "3"})

    assert (loaded.settings.port, loaded.origins["PORT"]) == (3, "command line")
    assert (loaded.settings.host, loaded.origins["HOST"]) == ("from-environment", "environment")
    assert (loaded.settings.model, loaded.origins["MODEL"]) == ("from-file", ".env")
    assert (loaded.settings.model_dir, loaded.origins["MODEL_DIR"]) == (None, "default")
    assert list(loaded.origins) == EVERY_VARIABLE


def test_an_empty_value_counts_as_not_set(env_file: Path) -> None:
    env_file.write_text("PORT=1\nMODEL=\nHOST\n")

    loaded = load_settings({"PORT": "  ", "BACKENDS": ""}, env_file)

    assert (loaded.settings.port, loaded.origins["PORT"]) == (1, ".env")
    assert (loaded.settings.model, loaded.origins["MODEL"]) == (None, "default")
    assert (loaded.settings.host, loaded.origins["HOST"]) == ("127.0.0.1", "default")
    assert loaded.origins["BACKENDS"] == "default"


def test_an_empty_blocked_paths_blocks_nothing(env_file: Path) -> None:
    env_file.write_text("BLOCKED_PATHS=/sleep\n")

    loaded = load_settings({"BLOCKED_PATHS": ""}, env_file)

    assert (loaded.settings.blocked_paths, loaded.origins["BLOCKED_PATHS"]) == ((), "environment")


def test_control_endpoints_are_blocked_by_default() -> None:
    rules = Settings().blocked_paths

    assert PathRule(None, "/sleep", is_prefix=False) in rules
    assert PathRule("POST", "/slots/", is_prefix=True) in rules
    assert PathRule("DELETE", "/models", is_prefix=True) in rules
    assert PathRule("POST", "/v1/models/", is_prefix=True) in rules
    assert len(set(rules)) == len(rules)
    ours = [rule for rule in rules if rule.path.startswith(("/v1/chat", "/v1/models", "/health", "/metrics"))]
    assert ours == [PathRule(method, "/v1/models/", is_prefix=True) for method in ("POST", "DELETE")]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "0", 0),
        ("PORT", " 65535 ", 65535),
        ("HOST", "::", "::"),
        ("HOST", "fe80::1", "fe80::1"),
        ("HOST", "llm_1.example", "llm_1.example"),
        ("METRICS_CACHE_TTL_SECONDS", "0.5", 0.5),
        ("BACKEND_IDLE_CONNECTION_SECONDS", "0", 0),
        ("DRAIN_TIMEOUT_SECONDS", "0", 0),
        ("MAX_ALLOWED_REQUEST_QUEUE", "0", 0),
        ("LLAMACPP_KEEP_ALIVE", "1", True),
        ("ACCESS_LOG", "off", False),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("LOG_FORMAT", "Json", "json"),
        ("BACKENDS", "http://a:1", ("http://a:1",)),
        ("BACKENDS", " http://a:1 , https://b/ ,", ("http://a:1", "https://b")),
        ("BACKENDS", "HTTP://LLM-1:80/Team/a//", ("http://llm-1:80/Team/a",)),
        ("BACKENDS", "http://[::1]:8080,http://llm_2", ("http://[::1]:8080", "http://llm_2")),
        ("BACKENDS", "http://a,https://a,http://a/x", ("http://a", "https://a", "http://a/x")),
        ("BLOCKED_PATHS", "/a", (PathRule(None, "/a", is_prefix=False),)),
        (
            "BLOCKED_PATHS",
            "post  /a/*, /b",
            (PathRule("POST", "/a/", is_prefix=True), PathRule(None, "/b", is_prefix=False)),
        ),
        ("BLOCKED_PATHS", "/*", (PathRule(None, "/", is_prefix=True),)),
    ],
)
def test_valid_values_are_parsed(name: str, text: str, value: object) -> None:
    assert getattr(from_environment({name: text}), name.lower()) == value


NOT_A_BASE_URL = "is not a base URL like http://llm-1:8080"
NOT_A_RULE = "is not a rule like /sleep, POST /props or POST /slots/* (paths without % escapes)"


@pytest.mark.parametrize(
    ("name", "text", "requirement"),
    [
        ("PORT", "abc", "must be a whole number from 0 to 65535"),
        ("PORT", "65536", "must be a whole number from 0 to 65535"),
        ("PORT", "-1", "must be a whole number from 0 to 65535"),
        ("PORT", "80.5", "must be a whole number from 0 to 65535"),
        ("HOST", "0.0.0.0:80", "must be an IP address or a host name, without a port"),
        ("HOST", "http://a", "must be an IP address or a host name, without a port"),
        ("METRICS_CACHE_TTL_SECONDS", "0", "must be a number of seconds above 0 and up to 86400"),
        ("METRICS_CACHE_TTL_SECONDS", "nan", "must be a number of seconds above 0 and up to 86400"),
        ("BACKEND_TIMEOUT_SECONDS", "inf", "must be a number of seconds above 0 and up to 86400"),
        ("BACKEND_TIMEOUT_SECONDS", "5m", "must be a number of seconds above 0 and up to 86400"),
        ("DRAIN_TIMEOUT_SECONDS", "-1", "must be a number of seconds from 0 to 86400"),
        ("MAX_ALLOWED_DEFERRED", "-1", "must be a whole number from 0 to 1000000"),
        ("MAX_REQUEST_BODY_BYTES", "64MiB", "must be a whole number of bytes from 1 to 1099511627776"),
        ("ACCESS_LOG", "maybe", "must be true or false"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "must be one of text, json"),
        ("BACKENDS", ",", "must list at least one base URL like http://llm-1:8080"),
        ("BACKENDS", "llm-1:8080", "'llm-1:8080' must begin with http:// or https://"),
        ("BACKENDS", "http://a,ftp://b", "'ftp://b' must begin with http:// or https://"),
        ("BACKENDS", "http://", f"'http://' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://:80", f"'http://:80' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://a:0", f"'http://a:0' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://a:65536", f"'http://a:65536' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://a:port", f"'http://a:port' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://a b", f"'http://a b' {NOT_A_BASE_URL}"),
        ("BACKENDS", "http://a?x=1", "'http://a?x=1' must not have a query (?) or fragment (#)"),
        ("BACKENDS", "http://a/#x", "'http://a/#x' must not have a query (?) or fragment (#)"),
        ("BACKENDS", "http://a,http://A:80/", "'http://a:80' is listed twice"),
        ("BACKENDS", "https://a/x/,https://a:443/x", "'https://a:443/x' is listed twice"),
        ("BLOCKED_PATHS", "sleep", f"'sleep' {NOT_A_RULE}"),
        ("BLOCKED_PATHS", "/a,POST", f"'POST' {NOT_A_RULE}"),
        ("BLOCKED_PATHS", "/a*b", f"'/a*b' {NOT_A_RULE}"),
        ("BLOCKED_PATHS", "/a?b", f"'/a?b' {NOT_A_RULE}"),
        ("BLOCKED_PATHS", "/%73leep", f"'/%73leep' {NOT_A_RULE}"),
    ],
)
def test_an_invalid_value_is_one_line_that_says_what_is_valid(name: str, text: str, requirement: str) -> None:
    assert problems_with({name: text}) == [f"{name} is {text!r}: {requirement}"]


@pytest.mark.parametrize("address", ["tcp://10.0.0.7:80", "udp://10.0.0.7:53", "tcp://[fd00::7]:80"])
def test_address_of_a_kubernetes_service_is_explained(address: str) -> None:
    (problem,) = problems_with({"ADMIN_PORT": address})
    assert problem == (
        f"ADMIN_PORT is {address!r}: must be a whole number from 0 to 65535; Kubernetes sets this variable for a "
        "service that is named 'admin'; rename the service, or set 'enableServiceLinks: false' in the pod"
    )


QUOTES = "the quotes are part of the value, because `docker run --env-file` keeps them; remove them"


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("PORT", '"8888"', '"8888"'),
        ("HOST", "'0.0.0.0'", "'0.0.0.0'"),
        ("LOG_LEVEL", '"info"', '"info"'),
        ("LOG_LEVEL", '""', '""'),
        ("BACKENDS", '"http://a:1"', '"http://a:1"'),
        ("BACKENDS", '"http://user:secret@a:1"', '"http://***@a:1"'),
        ("CONFIG_FILE", '"/fleet.yaml"', '"/fleet.yaml"'),
        ("API_KEYS_FILE", '"/keys.yaml"', '"/keys.yaml"'),
        ("ADMIN_KEY", '"secret"', "***"),
        ("API_KEYS", "'me:secret'", "***"),
    ],
)
def test_quotes_around_a_value_are_explained(name: str, text: str, shown: str) -> None:
    assert problems_with({name: text}) == [f"{name} is {shown!r}: {QUOTES}"]


def test_quotes_in_an_env_file_are_no_part_of_the_value(env_file: Path) -> None:
    env_file.write_text("PORT=\"99\"\nLOG_LEVEL='error'\n")
    settings = load_settings({}, env_file).settings
    assert (settings.port, settings.log_level) == (99, "error")


def test_quoted_backends_are_not_reported_as_missing(env_file: Path) -> None:
    for name in ("BACKENDS", "CONFIG_FILE"):
        with pytest.raises(SettingsError) as raised:
            load_settings({name: '"http://a"'}, env_file, backends_required=True)
        assert QUOTES in str(raised.value)
        assert "is not set" not in str(raised.value)


def test_a_comment_after_a_value_is_explained() -> None:
    (problem,) = problems_with({"PORT": "8888 # the usual one"})
    assert problem.endswith("; `docker run --env-file` keeps comments after a value; put them on lines of their own")


def test_every_invalid_variable_has_its_own_line(env_file: Path) -> None:
    env_file.write_text("PORT=abc\n")

    assert [line.split()[0] for line in problems_with({"LOG_LEVEL": "loud"}, env_file)] == ["PORT", "LOG_LEVEL"]


def test_missing_backends_are_an_error_only_where_required() -> None:
    with pytest.raises(
        SettingsError, match=r"BACKENDS is not set: .* such as BACKENDS=http://127.0.0.1:8080"
    ) as caught:
        load_settings({"PORT": "abc"}, NO_FILE, backends_required=True)

    assert "PORT is 'abc'" in str(caught.value)
    assert load_settings({"BACKENDS": "http://a"}, NO_FILE, backends_required=True).settings.backends == ("http://a",)


def test_a_password_in_a_refused_url_is_hidden() -> None:
    assert problems_with({"BACKENDS": "http://user:secret@a,http://b"}) == [
        "BACKENDS is 'http://***@a,http://b': a URL with a user name or password is not supported"
    ]


def test_a_very_long_value_is_truncated() -> None:
    (line,) = problems_with({"PORT": "9" * 10_000})

    assert line == f"PORT is '{'9' * 200}...': must be a whole number from 0 to 65535"


@given(st.sampled_from(EVERY_VARIABLE), st.text() | st.text("0123456789.,:/-*[]ahtpsPOST "))
def test_any_text_is_a_valid_value_or_one_line_of_error(name: str, text: str) -> None:
    error_text = ""
    try:
        from_environment({name: text})
    except SettingsError as error:
        error_text = str(error)

    assert len(error_text.splitlines()) <= 1
    assert not error_text or error_text.startswith(f"{name} is ")


def test_an_env_file_may_have_comments_quotes_and_windows_line_ends(env_file: Path) -> None:
    env_file.write_bytes(b"\xef\xbb\xbfPORT=1 # one\r\n\r\n# two\r\nexport MODEL='a b $HOME #1'\r\nHF_TOKEN=x\r\n")

    loaded = load_settings({}, env_file)

    assert (loaded.settings.port, loaded.settings.model) == (1, "a b $HOME #1")
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PORT=1\n= 2\nMODEL=secret'\n", [".env line 2 is not NAME=value"]),
        (b"MODEL='no end\n", [".env line 1 is not NAME=value"]),
        (b"MODEL=\xff\n", [".env cannot be read: it is not UTF-8 text"]),
    ],
)
def test_an_invalid_env_file_prevents_the_start(env_file: Path, content: bytes, problem: list[str]) -> None:
    env_file.write_bytes(content)

    assert problems_with({}, env_file) == problem


def test_an_env_file_that_is_a_directory_prevents_the_start(env_file: Path) -> None:
    env_file.mkdir()

    assert problems_with({}, env_file) == [".env cannot be read: Is a directory"]


# --- the fleet file as a source


@pytest.fixture
def fleet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "fleet.yaml"


def test_the_fleet_file_is_the_last_source_before_the_default(env_file: Path, fleet_file: Path) -> None:
    fleet_file.write_text("""\
backends: [{url: http://a, weight: 2}, {url: http://b}]
settings: {port: 1, HOST: 10.0.0.0, Queue_Timeout_Seconds: 60, ACCESS_LOG: off, LOG_LEVEL: error}
""")
    env_file.write_text("CONFIG_FILE=fleet.yaml\nHOST=from-dot-env\n")

    loaded = load_settings({"PORT": "2", "LOG_LEVEL": " "}, env_file, backends_required=True)

    assert (loaded.settings.port, loaded.origins["PORT"]) == (2, "environment")
    assert (loaded.settings.host, loaded.origins["HOST"]) == ("from-dot-env", ".env")
    assert (loaded.settings.queue_timeout_seconds, loaded.origins["QUEUE_TIMEOUT_SECONDS"]) == (60, "config file")
    assert (loaded.settings.access_log, loaded.settings.log_level) == (False, "error")
    assert (loaded.settings.backends, loaded.origins["BACKENDS"]) == (("http://a", "http://b"), "config file")
    assert (loaded.settings.log_format, loaded.origins["LOG_FORMAT"]) == ("text", "default")
    assert loaded.settings.config_file == "fleet.yaml"
    assert list(loaded.origins) == EVERY_VARIABLE
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("HOST", "10.0.0.0", "10.0.0.0"),
        ("API_KEYS_FILE", "'1.0'", "1.0"),
        ("DRAIN_TIMEOUT_SECONDS", "1.0", 1),
        ("MAX_REQUESTS_IN_FLIGHT", "1_000", 1000),
        ("QUEUE_UPDATES", "yes", True),
        (
            "TRUSTED_PROXIES",
            "[10.0.0.0/8, '::1']",
            from_environment({"TRUSTED_PROXIES": "10.0.0.0/8,::1"}).trusted_proxies,
        ),
        ("BLOCKED_PATHS", "[POST /a*]", (PathRule("POST", "/a", is_prefix=True),)),
        ("BLOCKED_PATHS", "[]", ()),
        ("BLOCKED_PATHS", "''", ()),
    ],
)
def test_a_setting_in_the_fleet_file_may_have_a_yaml_type(
    fleet_file: Path, name: str, written: str, value: object
) -> None:
    fleet_file.write_text(f"settings: {{{name}: {written}}}")

    loaded = load_settings({"CONFIG_FILE": str(fleet_file)}, NO_FILE)

    assert (getattr(loaded.settings, name.lower()), loaded.origins[name]) == (value, "config file")


def test_an_invalid_value_in_the_fleet_file_is_one_line_that_names_the_file(fleet_file: Path) -> None:
    fleet_file.write_text("settings: {port: 70000, QUEUE_TIMEOUT_SECONDS: 1m, ADMIN_KEY: planted secret}")

    assert problems_with({"CONFIG_FILE": "fleet.yaml", "LOG_LEVEL": "loud"}) == [
        "fleet.yaml: settings.PORT is '70000': must be a whole number from 0 to 65535",
        "fleet.yaml: settings.QUEUE_TIMEOUT_SECONDS is '1m': must be a number of seconds above 0 and up to 86400",
        "fleet.yaml: settings.ADMIN_KEY is '***': must be printable ASCII without blanks",
        "LOG_LEVEL is 'loud': must be one of debug, info, warning, error",
    ]


def test_an_unusable_fleet_file_is_one_line_without_consequential_errors(fleet_file: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"CONFIG_FILE": "fleet.yaml"}, NO_FILE, backends_required=True)

    assert str(caught.value) == "CONFIG_FILE is 'fleet.yaml': No such file or directory"


def test_backends_in_the_environment_override_the_list_in_the_fleet_file(fleet_file: Path) -> None:
    fleet_file.write_text("backends: [{url: 'http://a:80/', name: first, weight: 2}, {url: http://b}]")

    loaded = load_settings({"CONFIG_FILE": "fleet.yaml", "BACKENDS": "http://c,http://a"}, NO_FILE)

    assert loaded.settings.backends == ("http://c", "http://a")
    assert [(backend.url, backend.name, backend.weight) for backend in loaded.configuration.fleet] == [
        ("http://c", "c:80", 1),
        ("http://a", "first", 2),
    ]
    assert loaded.warnings == ("fleet.yaml: http://b is not used: BACKENDS (environment) does not list it",)


def test_empty_backends_leave_the_list_to_the_fleet_file(fleet_file: Path) -> None:
    fleet_file.write_text("backends: [{url: http://a}]")

    loaded = load_settings({"CONFIG_FILE": "fleet.yaml", "BACKENDS": ""}, NO_FILE, backends_required=True)

    assert loaded.settings.backends == ("http://a",)


def test_a_fleet_file_without_backends_does_not_replace_backends(fleet_file: Path) -> None:
    fleet_file.write_text("settings: {PORT: 1}")

    with pytest.raises(SettingsError, match=r"^BACKENDS is not set"):
        load_settings({"CONFIG_FILE": "fleet.yaml"}, NO_FILE, backends_required=True)


def test_a_key_that_the_fleet_file_names_may_come_from_the_environment_or_dot_env(
    fleet_file: Path, env_file: Path
) -> None:
    fleet_file.write_text("backends: [{url: http://a, api_key_env: KEY_A}, {url: http://b, api_key_env: KEY_B}]")
    env_file.write_text("KEY_A=from-dot-env\nKEY_B=not-this\n")

    fleet = load_settings({"CONFIG_FILE": "fleet.yaml", "KEY_A": "", "KEY_B": "b"}, env_file).configuration.fleet

    assert [key.get_secret_value() for backend in fleet if (key := backend.api_key)] == ["from-dot-env", "b"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("METRIC_CACHE_TTL_SECONDS", "METRICS_CACHE_TTL_SECONDS"),
        ("BACKEND_TIMEOUT", "BACKEND_TIMEOUT_SECONDS"),
        ("BACKEND", "BACKENDS"),
        ("port", "PORT"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("PROT", "PORT"),
        ("HSOT", "HOST"),
        ("TLS_CERT", "TLS_CERT_FILE"),
        ("BACKEND_URLS", "BACKENDS"),
    ],
)
def test_a_misspelt_name_in_the_env_file_gives_a_warning(env_file: Path, written: str, meant: str) -> None:
    env_file.write_text(f"{written}=1\n")

    assert load_settings({}, env_file).warnings == (f".env: {written} is not a setting; did you mean {meant}?",)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("BACKEND_TIMEOUT", "BACKEND_TIMEOUT_SECONDS"), ("LOGLEVEL", "LOG_LEVEL"), ("API_KEY", "API_KEYS")],
)
def test_a_misspelt_name_in_the_environment_gives_a_warning(written: str, meant: str) -> None:
    warning = f"environment: {written} is not a setting; did you mean {meant}?"
    assert load_settings({written: "planted"}, NO_FILE).warnings == (warning,)


def test_one_port_for_two_settings_is_one_line() -> None:
    assert problems_with({"PORT": "8890", "ADMIN_PORT": "8890"}) == [
        "PORT and ADMIN_PORT are both 8890: choose another port for one of them"
    ]
    assert from_environment({"PORT": "0", "ADMIN_PORT": "0"}).admin_port == 0  # two free ports


def test_variables_of_opentelemetry_in_the_env_file_give_a_warning(env_file: Path) -> None:
    env_file.write_text("TRACING=on\nOTEL_SERVICE_NAME=a\nOTEL_TRACES_SAMPLER=always_on\n")
    environment = {"OTEL_TRACES_SAMPLER": "always_off"}  # as Compose passes it on
    assert load_settings(environment, env_file).warnings == (
        ".env: OTEL_SERVICE_NAME has no effect there; set it in the environment",
    )
    assert load_settings({**environment, "TRACING": "off"}, env_file).warnings == ()


def test_a_misspelt_name_is_reported_with_the_errors_that_it_may_cause(env_file: Path) -> None:
    env_file.write_text("PROT=1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({"BACKEND": "http://a"}, env_file, backends_required=True)
    missing, *hints = str(caught.value).splitlines()
    assert missing.startswith("BACKENDS is not set")
    assert hints == [
        "environment: BACKEND is not a setting; did you mean BACKENDS?",
        ".env: PROT is not a setting; did you mean PORT?",
    ]


FOREIGN = (
    "PATH HOME USER HOSTNAME SHELL LANG LC_ALL TERM PWD TZ EDITOR DISPLAY LOGNAME MAIL TMPDIR http_proxy NO_PROXY "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE PYTHONPATH VIRTUAL_ENV CUDA_VISIBLE_DEVICES HF_HOME HF_TOKEN "
    "OPENAI_API_KEY ANTHROPIC_API_KEY OPENAI_BASE_URL KUBERNETES_PORT KUBERNETES_SERVICE_HOST KUBERNETES_PORT_443_TCP "
    "LLM_SERVICE_HOST LLM_PORT LLM_PORT_8080_TCP_ADDR BACKEND_PORT BACKEND_SERVICE_PORT ADMIN_SERVICE_HOST "
    "INVOCATION_ID JOURNAL_STREAM CONFIG CONFIG_DIR TROP WEB_CONCURRENCY FORWARDED_ALLOW_IPS LOG_DIR "
    "GITHUB_TOKEN CONDA_PREFIX"
)


@pytest.mark.parametrize("name", FOREIGN.split())
def test_a_foreign_name_in_the_environment_is_ignored(name: str) -> None:
    assert load_settings({name: "1"}, NO_FILE).warnings == ()


@pytest.mark.parametrize("text", ["warn", "WARN", "warning"])
def test_warn_means_warning(text: str) -> None:
    assert from_environment({"LOG_LEVEL": text}).log_level == "warning"


@pytest.mark.parametrize("name", ["HF_TOKEN", "COMPOSE_PROJECT_NAME", "HTTPS_PORT", "MODEL_2", "VLLM_IMAGE", "TZ"])
def test_a_foreign_name_in_the_env_file_is_ignored(env_file: Path, name: str) -> None:
    env_file.write_text(f"{name}=1\n")

    assert load_settings({}, env_file).warnings == ()


def test_every_value_survives_a_round_trip_through_its_variable() -> None:
    settings = Settings(
        backends=("http://a", "http://b:1/x"),
        backend_timeout_seconds=0.25,
        drain_timeout_seconds=10.0,
        access_log=False,
        blocked_paths="POST /a*,/b",
    )
    variables = {field.upper(): as_variable(getattr(settings, field)) for field in Settings.model_fields}

    assert variables["DRAIN_TIMEOUT_SECONDS"] == "10"
    assert variables["BLOCKED_PATHS"] == "POST /a*,/b"
    assert from_environment(variables) == settings


def test_an_address_that_ends_with_zero_is_shown_in_full() -> None:
    assert as_variable(Settings(host="0.0.0.0").host) == "0.0.0.0"  # noqa: S104 - nothing listens


def test_every_setting_has_a_description_of_one_sentence() -> None:
    for field in Settings.model_fields.values():
        assert field.description
        assert field.description.endswith(".")
        assert "\n" not in field.description


def test_a_base_url_that_ends_with_v1_gives_a_warning() -> None:
    loaded = load_settings({"BACKENDS": "http://a/v1,http://b/base"}, Path("missing"))

    assert loaded.warnings == (
        "BACKENDS: http://a/v1 ends with /v1, but request paths already begin with it: remove it",
    )


def test_a_refused_key_is_not_repeated() -> None:
    for name in ("API_KEYS", "ADMIN_KEY", "METRICS_KEY", "BACKEND_API_KEY"):
        with pytest.raises(SettingsError) as caught:
            load_settings({name: "planted secret"}, Path("missing"))
        assert "planted" not in str(caught.value)


def test_retry_statuses_are_sorted_and_given_once() -> None:
    assert Settings(retry_statuses="503, 429,503").retry_statuses == (429, 503)
    assert Settings(retry_statuses="").retry_statuses == ()


@pytest.mark.parametrize("text", ["200", "600", "5xx", "503;429"])
def test_retry_statuses_must_be_errors(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a status from 400 to 599"):
        Settings(retry_statuses=text)
