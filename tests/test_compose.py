"""The Compose files, as Docker Compose would read them: interpolated, merged and without Docker."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.config.settings import Settings

ROOT = Path(__file__).parent.parent
ENGINE_PORTS = {"llamacpp": 8080, "vllm": 8000, "cpu": 8080}
FIXED_INSIDE = {"PORT", "HOST"}
ONLY_FOR_ENGINES = {"MODEL", "MODEL_DIR"}
LEFT_TO_NGINX = {"TLS_CERT_FILE", "TLS_KEY_FILE"}
DOT_ENV = {"MODEL": "some-model.gguf", "PORT": "9000", "HOST": "127.0.0.1"}

Service = dict[str, Any]

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<word>(?:[^{}]|\{[^{}]*\})*))?\})"
)


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """``$$``, ``${NAME}``, ``${NAME:-word}`` and ``${NAME:?word}``; without the colon, an empty value counts as one."""

    def value_of(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        value, operator = environment.get(match["name"]), match["operator"] or ""
        if value or (value is not None and not operator.startswith(":")):
            return value
        if operator.endswith("?"):
            raise LookupError(f"{match['name']}: {match['word']}")
        return interpolate(match["word"] or "", environment)

    replaced = _VARIABLE.sub(value_of, text)
    if re.search(r"\$(?!\$)[\w{]", _VARIABLE.sub("", text)):
        raise ValueError(f"not understood: {text}")
    return replaced


def resolved(node: Any, environment: Mapping[str, str]) -> Any:
    """Interpolated values; keys stay, as in Compose."""
    if isinstance(node, dict):
        return {key: resolved(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [resolved(item, environment) for item in node]
    return interpolate(node, environment) if isinstance(node, str) else node


def environment_of(service: Service, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container; a name without a value is looked up, and left out if it is not set."""
    given = service.get("environment", {})
    if isinstance(given, list):
        given = {name: value if equals else None for name, equals, value in (item.partition("=") for item in given)}
    found = {name: environment.get(name) if value is None else str(value) for name, value in given.items()}
    return {name: value for name, value in found.items() if value is not None}


def source(kind: str) -> str:
    return (ROOT / f"docker-compose.{kind}.yml").read_text()


def with_third_engine(text: str) -> str:
    """The change that the file describes: a copy of llm-2's block, and one more URL."""
    block = re.search(r"^  llm-2:\n(?:^    .*\n)+", text, re.MULTILINE)
    assert block is not None
    text = text.replace(block[0], block[0] + "\n" + block[0].replace("llm-2:", "llm-3:"))
    return re.sub(r"(,http://)llm-2(:\d+)", r"\1llm-2\2\1llm-3\2", text)


def services_of(text: str, environment: Mapping[str, str]) -> dict[str, Service]:
    services: dict[str, Service] = resolved(yaml.safe_load(text)["services"], environment)
    return services


def engines_of(services: dict[str, Service]) -> dict[str, Service]:
    return {name: service for name, service in services.items() if name.startswith("llm-")}


def alias_of(engine: Service) -> str:
    if "command" not in engine:
        return str(engine["environment"]["LLAMA_ARG_ALIAS"])
    words = engine["command"].split()
    return str(words[words.index("--served-model-name") + 1])


@pytest.fixture(params=list(ENGINE_PORTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def services(kind: str) -> dict[str, Service]:
    return services_of(with_third_engine(source(kind)), DOT_ENV)


@pytest.mark.parametrize("change", [str, with_third_engine])
def test_file_follows_the_published_schema(kind: str, change: Any, tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(change(source(kind)))
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_third_engine_is_one_more_block_and_one_more_url(kind: str, services: dict[str, Service]) -> None:
    assert list(engines_of(services)) == ["llm-1", "llm-2", "llm-3"]
    urls = environment_of(services["proxy"], DOT_ENV)["BACKENDS"].split(",")
    assert urls == [f"http://{name}:{ENGINE_PORTS[kind]}" for name in engines_of(services)]


def test_only_nginx_publishes_ports(services: dict[str, Service]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    assert services["nginx"]["ports"] == ["9000:80", "8443:443"]
    assert all("network_mode" not in service for service in services.values())


def test_published_port_is_8888_by_default(kind: str) -> None:
    assert services_of(source(kind), {"MODEL": "m"})["nginx"]["ports"][0] == "8888:80"


@pytest.mark.parametrize("env", [{}, {"PORT": "9000", "HOST": "127.0.0.1"}])
def test_dot_env_does_not_change_the_internal_address_of_the_proxy(kind: str, env: dict[str, str]) -> None:
    env = {"MODEL": "m"} | env
    inside = environment_of(services_of(source(kind), env)["proxy"], env)
    port = ENGINE_PORTS[kind]
    assert inside == {
        "PORT": "8888",
        "HOST": "0.0.0.0",  # noqa: S104
        "BACKENDS": f"http://llm-1:{port},http://llm-2:{port}",
        "TRUSTED_PROXIES": "private",
    }


def test_backends_in_dot_env_replace_those_of_the_file(kind: str) -> None:
    env = {"MODEL": "m", "BACKENDS": "http://elsewhere:1"}
    assert environment_of(services_of(source(kind), env)["proxy"], env)["BACKENDS"] == "http://elsewhere:1"


def test_empty_backends_in_dot_env_leave_the_list_to_the_fleet_file(kind: str) -> None:
    env = {"MODEL": "m", "BACKENDS": "", "CONFIG_FILE": "/config/fleet.yaml"}
    inside = environment_of(services_of(source(kind), env)["proxy"], env)
    assert (inside["BACKENDS"], inside["CONFIG_FILE"]) == ("", "/config/fleet.yaml")


def test_every_other_setting_reaches_the_proxy_as_it_is_in_dot_env(kind: str) -> None:
    names = {field.upper() for field in Settings.model_fields} - FIXED_INSIDE - ONLY_FOR_ENGINES - LEFT_TO_NGINX
    names.remove("BACKENDS")
    env = {"MODEL": "m"} | dict.fromkeys(names, "")
    inside = environment_of(services_of(source(kind), env)["proxy"], env)
    assert {name: inside.get(name) for name in names} == dict.fromkeys(names, "")


def test_defaults_in_the_file_are_those_of_the_settings(kind: str) -> None:
    defaults = {field.upper(): definition.default for field, definition in Settings.model_fields.items()}
    stated = re.findall(r"\$\{(\w+):-(\d+)\}", source(kind))
    assert {(name, value) for name, value in stated if name in defaults and str(defaults[name]) != value} == set()
    assert len([name for name, _ in stated if name in defaults]) >= 4


def test_proxy_waits_for_healthy_engines_and_nginx_for_a_healthy_proxy(services: dict[str, Service]) -> None:
    healthy: dict[str, Any] = {"condition": "service_healthy"}
    assert services["proxy"]["depends_on"] == {"llm-1": healthy, "llm-2": healthy}
    assert services["nginx"]["depends_on"] == {"proxy": healthy}
    assert all("depends_on" not in engine for engine in engines_of(services).values())


def test_engines_have_ten_minutes_to_load(kind: str, services: dict[str, Service]) -> None:
    for engine in engines_of(services).values():
        assert engine["healthcheck"]["start_period"] == "10m"
        assert f"http://127.0.0.1:{ENGINE_PORTS[kind]}/health" in " ".join(engine["healthcheck"]["test"])


@pytest.mark.parametrize(("env", "alias"), [({}, "some-model.gguf"), ({"MODEL_ALIAS": "chat"}, "chat")])
def test_all_engines_serve_one_model_under_one_name(kind: str, env: dict[str, str], alias: str) -> None:
    engines = engines_of(services_of(with_third_engine(source(kind)), DOT_ENV | env))
    assert [alias_of(engine) for engine in engines.values()] == [alias] * 3


@pytest.mark.parametrize("kind", ["llamacpp", "cpu"])
def test_llamacpp_listens_at_its_base_url_and_has_metrics(services: dict[str, Service]) -> None:
    for engine in engines_of(services).values():
        env = environment_of(engine, DOT_ENV)
        assert (env["LLAMA_ARG_HOST"], env["LLAMA_ARG_PORT"]) == ("0.0.0.0", "8080")  # noqa: S104
        assert env["LLAMA_ARG_ENDPOINT_METRICS"] == "1"
        assert int(env["LLAMA_ARG_THREADS_HTTP"]) >= 32
        assert env["LLAMA_ARG_MODEL"] == "/models/some-model.gguf"


@pytest.mark.parametrize("kind", ["vllm"])
def test_vllm_listens_at_its_base_url_and_shares_memory(services: dict[str, Service]) -> None:
    for engine in engines_of(services).values():
        assert engine["command"].endswith("--host 0.0.0.0 --port 8000 ")
        assert engine["ipc"] == "host"


def test_gpu_of_an_engine_is_one_line(kind: str) -> None:
    lines = [line.strip() for line in source(kind).splitlines() if "device_ids" in line]
    taken = [line.partition("#")[0].strip() for line in lines]
    assert taken == ([] if kind == "cpu" else ['device_ids: ["0"]', 'device_ids: ["1"]'])
    assert all("nvidia-smi" in line for line in lines)


def test_models_are_mounted_read_only(kind: str) -> None:
    env = DOT_ENV | {"MODEL_DIR": "/srv/models"}
    for engine in engines_of(services_of(source(kind), env)).values():
        mount = engine["volumes"][0]
        assert (mount["source"], mount["target"], mount["read_only"]) == ("/srv/models", "/models", True)


def test_missing_model_stops_the_start_with_a_clear_message(kind: str) -> None:
    with pytest.raises(LookupError, match=r"^MODEL: set MODEL in \.env to "):
        services_of(source(kind), {})


def test_no_container_has_a_fixed_name(services: dict[str, Service]) -> None:
    assert all("container_name" not in service for service in services.values())


def test_images_are_pinned_and_can_be_replaced(kind: str) -> None:
    images = re.findall(r"^ *image: (.+)$", source(kind), re.MULTILINE)
    assert len(images) == 2
    assert all(re.fullmatch(r"\$\{[A-Z_]+_IMAGE:-[\w./-]+:[\w.-]*\d[\w.-]*\}", image) for image in images), images


@pytest.mark.parametrize(
    ("env", "seconds"),
    [({}, 60 + 5 + 300), ({"DRAIN_TIMEOUT_SECONDS": "900", "DRAIN_GRACE_SECONDS": "0.5"}, 60 + 0.5 + 900)],
)
def test_stop_waits_a_minute_longer_than_the_proxy_takes(kind: str, env: dict[str, str], seconds: float) -> None:
    services = services_of(source(kind), DOT_ENV | env)
    for name in ("proxy", "nginx"):
        parts = re.findall(r"([\d.]+)([ms])", services[name]["stop_grace_period"])  # Compose adds the parts
        assert sum(float(number) * {"m": 60, "s": 1}[unit] for number, unit in parts) == seconds
        assert "".join(map("".join, parts)) == services[name]["stop_grace_period"]


def test_proxy_and_nginx_are_the_same_in_every_file() -> None:
    rest = {source(kind).partition("  proxy:\n")[2].partition("\nvolumes:")[0].strip() for kind in ENGINE_PORTS}
    assert len({text.replace(":8000", ":8080") for text in rest}) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A:-b}", "b"), ("${EMPTY:-b}", "b"), ("${EMPTY-b}", ""), ("${SET:-b}", "x"), ("a$${SET}", "a${SET}"),
        ("${A:-${SET}}y", "xy"), ("${A}", ""), ("${SET:?no}", "x"),
    ],
)  # fmt: skip
def test_interpolation_in_these_tests_equals_that_of_compose(text: str, value: str) -> None:
    assert interpolate(text, {"SET": "x", "EMPTY": ""}) == value


def test_nginx_gets_its_template_and_certificates(services: dict[str, Service]) -> None:
    assert services["nginx"]["volumes"] == [
        "./nginx/templates:/etc/nginx/templates:ro",
        "./nginx/15-read-timeout.envsh:/docker-entrypoint.d/15-read-timeout.envsh:ro",
        "./nginx/16-proxies.envsh:/docker-entrypoint.d/16-proxies.envsh:ro",
        "./nginx/40-https.sh:/docker-entrypoint.d/40-https.sh:ro",
        "./nginx/certs:/etc/nginx/certs:ro",
    ]


@pytest.mark.parametrize(("env", "replicas"), [({}, "1"), ({"PROXY_REPLICAS": "3"}, "3")])
def test_number_of_replicas_is_one_variable(kind: str, env: dict[str, str], replicas: str) -> None:
    services = services_of(source(kind), DOT_ENV | env)
    assert services["proxy"]["deploy"]["replicas"] == replicas
    assert not services["proxy"].keys() & {"container_name", "ports"}  # Compose refuses to scale a service with these
    assert environment_of(services["nginx"], env)["PROXIES"] == "proxy:8888"  # the name has the addresses of all


def test_the_example_that_scales_engines_by_their_name() -> None:
    page = (ROOT / "docs" / "discovery.md").read_text()
    services = yaml.safe_load(re.findall(r"```yaml\n(services:.*?)```", page, re.DOTALL)[0])["services"]
    environment = services["proxy"]["environment"]
    [url] = Settings(backends=environment["BACKENDS"]).backends
    lookup = Lookup.of(url)
    engine = services[lookup.name]
    assert lookup.server is None  # Compose's own
    assert f"--port {lookup.port}" in engine["command"]
    assert not engine.keys() & {"container_name", "ports"}  # Compose refuses to scale a service with these
    assert f"--scale {lookup.name}=" in page
