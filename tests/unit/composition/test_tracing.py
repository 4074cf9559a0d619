from __future__ import annotations

import subprocess
import sys

import pytest

from inference_engine_proxy_server.composition import build_proxy
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from support.fleet_files import configuration_of

PACKAGE = "inference_engine_proxy_server.tracing"
SETTINGS = Settings(backends=("http://127.0.0.1:9",), tracing=True)
IMPORTS = """
import sys
from inference_engine_proxy_server.composition import build_proxy
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings

for tracing in (False, True):
    build_proxy(Configuration.of(Settings(backends=("http://127.0.0.1:9",), tracing=tracing)))
    print([name for name in ("PACKAGE", "opentelemetry.sdk", "opentelemetry.exporter") if name in sys.modules])
"""


def test_without_tracing_nothing_of_it_is_imported() -> None:
    program = [sys.executable, "-c", IMPORTS.replace("PACKAGE", PACKAGE)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    off, on = ended.stdout.splitlines()
    assert off == "[]"  # FastAPI itself imports opentelemetry-api
    assert PACKAGE in on


def test_a_missing_extra_stops_the_start_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)  # as if it were not installed

    with pytest.raises(SettingsError, match=r"TRACING is on, and the package opentelemetry\.sdk") as raised:
        build_proxy(configuration_of("{}", SETTINGS))
    assert "pip install inference-engine-proxy-server[otel]" in str(raised.value)


def test_a_missing_exporter_stops_the_start_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)

    with pytest.raises(SettingsError, match=r"the package opentelemetry\.exporter\.otlp\.proto\.grpc"):
        build_proxy(configuration_of("{}", SETTINGS))


def test_the_usual_path_is_not_wrapped_without_tracing() -> None:
    proxy = build_proxy(configuration_of("{}", SETTINGS.model_copy(update={"tracing": False})))
    assert proxy.clients.new_exchange.__name__ == "ProxiedRequest"
    assert proxy.clients.handle.__qualname__ == "_handler.<locals>.handle"
    assert proxy.clients.observe.__qualname__ == "_recorder.<locals>.record"
