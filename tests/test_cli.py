"""The command line: exit codes, and what goes to which output.

Most tests run the program as a process. The tests of ``serve`` and ``demo`` replace the server and the demo's engines,
which have end-to-end tests of their own.
"""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.cli import main
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from support.ports import free_port
from support.program import environment, run_command

PACKAGE = "inference_engine_proxy_server"
FLEET = ("http://127.0.0.1:18081", "http://127.0.0.1:18082")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the program in an empty directory, with only the given environment."""

    return partial(run_command, tmp_path)


Command = Callable[..., subprocess.CompletedProcess[str]]


def test_no_arguments_show_the_help_and_fail(command: Command) -> None:
    done = command()

    assert (done.returncode, done.stdout) == (2, "")
    assert all(word in done.stderr for word in ("usage: inference-proxy", "serve", "demo", "settings"))


def test_importing_the_main_module_does_not_run_it() -> None:
    """A process started by ``multiprocessing`` imports its parent's main module."""
    assert importlib.import_module(f"{PACKAGE}.__main__").main is main


def test_an_unknown_command_fails(command: Command) -> None:
    done = command("sevre")

    assert done.returncode == 2
    assert "sevre" in done.stderr


def test_the_version_is_shown(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", PACKAGE, "--version"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, f"inference-proxy {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["demo", "--help"], ["settings", "--help"]])
def test_the_help_is_shown(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)

    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: inference-proxy" in done.stdout


def test_serve_without_backends_fails_with_one_line(command: Command) -> None:
    done = command("serve")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("BACKENDS is not set: ")
    assert "BACKENDS=http://127.0.0.1:8080," in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_invalid_setting_is_one_line(command: Command) -> None:
    done = command("serve", PORT="abc", BACKENDS="ftp://a")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "PORT is 'abc': must be a whole number from 0 to 65535",
        "BACKENDS is 'ftp://a': 'ftp://a' must begin with http:// or https://",
    ]


def test_an_invalid_option_is_reported_like_an_invalid_variable(command: Command) -> None:
    done = command("demo", "--port", "70000")

    assert (done.returncode, done.stderr) == (2, "PORT is '70000': must be a whole number from 0 to 65535\n")


@pytest.mark.parametrize(
    "arguments", [["serve", "--back", "http://a"], ["serve", "--por", "1"], ["settings", "--js"], ["--vers"]]
)
def test_an_abbreviated_option_is_refused(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"unrecognized arguments: {arguments[-1] if len(arguments) < 3 else ' '.join(arguments[1:])}" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"PORT": "x"},
        {"API_KEYS_FILE": "missing.yaml"},
        {"API_KEYS_FILE": "wrong.yaml"},
        {"CONFIG_FILE": "missing.yaml"},
        {"CONFIG_FILE": "wrong.yaml"},
        {"CONFIG_FILE": "engine.yaml"},
        {"TLS_CERT_FILE": "missing.pem", "TLS_KEY_FILE": "missing.key"},
        {"BACKEND_CA_FILE": "missing.pem"},
        {"BACKEND_CA_FILE": "wrong.yaml"},
        {"HOST": "256.1.1.1"},
        {"HOST": "192.0.2.1"},
        {"PORT": "8890", "ADMIN_PORT": "8890"},
    ],
    ids=str,
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_mistake_in_the_configuration_has_exit_code_2(
    command: Command, tmp_path: Path, wrong: dict[str, str], workers: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("x: 1\n")
    (tmp_path / "engine.yaml").write_text("backends: [{url: http://a, engine: lamacpp}]\n")
    done = command("serve", BACKENDS="http://a", WORKERS=workers, **{"PORT": "0", **wrong})

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert any(name in done.stderr or value in done.stderr for name, value in wrong.items())


def test_settings_are_shown_with_their_source(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=debug\nMETRIC_CACHE_TTL_SECONDS=1\n")
    done = command("settings", PORT="9000", BACKENDS="http://a, http://b", BLOCKED_PATHS="")

    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert done.stderr == ".env: METRIC_CACHE_TTL_SECONDS is not a setting; did you mean METRICS_CACHE_TTL_SECONDS?\n"
    assert rows[:8] == [
        ["NAME", "FROM", "VALUE"],
        ["PORT", "environment", "9000"],
        ["HOST", "default", "127.0.0.1"],
        ["WORKERS", "default", "1"],
        ["BACKENDS", "environment", "http://a"],
        ["http://b"],
        ["CONFIG_FILE", "default", "(not set)"],
        ["DYNAMIC_BACKENDS_FILE", "default", "(not set)"],
    ]
    assert ["LOG_LEVEL", ".env", "debug"] in rows
    assert ["BLOCKED_PATHS", "environment", "(none)"] in rows
    assert {row[0] for row in rows if len(row) == 3} == {"NAME", *map(str.upper, Settings.model_fields)}


def test_the_columns_of_the_table_are_aligned(command: Command) -> None:
    lines = command("settings").stdout.splitlines()

    value_column = lines[0].index("VALUE")
    assert all(line[value_column - 2 : value_column] == "  " and line[value_column] != " " for line in lines)


def test_settings_can_be_shown_as_json(command: Command) -> None:
    rows = json.loads(command("settings", "--json", PORT="9000", BLOCKED_PATHS="POST /a*").stdout)

    assert list(rows) == [field.upper() for field in Settings.model_fields]
    assert rows["PORT"] == {
        "value": 9000,
        "origin": "environment",
        "description": "TCP port to listen on; 0 lets the operating system choose a free one.",
    }
    assert rows["BLOCKED_PATHS"]["value"] == ["POST /a*"]
    assert rows["BACKENDS"]["value"] == []
    assert rows["MODEL"]["value"] is None


FLEET_FILE = """\
backends: [{url: http://a, api_key: planted-key}, {url: http://b, api_key_env: KEY_OF_B, name: second}]
settings: {ADMIN_KEY: planted-admin, API_KEYS: "alice:planted-secret-of-alice", PORT: 9000}
"""


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_settings_from_the_fleet_file_are_shown_without_its_keys(
    command: Command, tmp_path: Path, as_json: list[str]
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET_FILE)
    done = command("settings", *as_json, CONFIG_FILE="fleet.yaml", KEY_OF_B="planted-b")

    assert done.returncode == 0
    assert "config file" in done.stdout
    assert "9000" in done.stdout
    assert "planted" not in done.stdout + done.stderr


def test_a_valid_fleet_file_is_summarized_without_its_keys(command: Command, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET_FILE)
    done = command("fleet", "check", "fleet.yaml", KEY_OF_B="planted-b", CONFIG_FILE="other.yaml")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "a:80  http://a",
        "second  http://b",
        "fleet.yaml is valid; it sets ADMIN_KEY, API_KEYS, BACKENDS, PORT",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fleet.yaml"], "fleet.yaml: backends.1.api_key_env: the environment variable that it names is not set\n"),
        (["missing.yaml"], "missing.yaml: No such file or directory\n"),
        ([""], ".: Is a directory\n"),
    ],
)
def test_an_invalid_fleet_file_is_one_line(
    command: Command, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET_FILE)
    done = command("fleet", "check", *arguments)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", complaint)


def test_an_unknown_engine_in_a_fleet_file_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("backends:\n  - url: http://a:1\n    engine: lamacpp\n")
    done = command("fleet", "check", "fleet.yaml")

    assert (done.returncode, done.stdout) == (2, "")
    names = ", ".join(sorted(discover_engines().by_provider))
    assert done.stderr == f"fleet.yaml: backends.0.engine is 'lamacpp': use one of {names}; did you mean llamacpp?\n"


def test_the_printed_schema_is_the_published_one(command: Command) -> None:
    published = Path(__file__).parent.parent / "docs" / "fleet.schema.json"

    assert command("fleet", "schema").stdout == published.read_text()


class Proxy:
    """Replaces the server: stores its arguments, reports that it listens, and returns ``exit_code``."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.load: Callable[[], Configuration] | None = None
        self.warnings: tuple[str, ...] = ()
        self.exit_code = 0

    def run(
        self,
        configuration: Configuration,
        on_started: Callable[[str], None] | None = None,
        load: Callable[[], Configuration] | None = None,
        warnings: Iterable[str] = (),
        command: Sequence[str] = (),
    ) -> int:
        self.settings, self.load, self.warnings = configuration.settings, load, tuple(warnings)
        if on_started is not None:
            on_started("http://127.0.0.1:9000")
        return self.exit_code


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Proxy:
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    proxy = Proxy()
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.server", SimpleNamespace(run=proxy.run))
    return proxy


class NoEngineError(Exception):
    """Replaces DemoUnavailable."""


class Fleet:
    """Replaces the demo's engines: starts unless it has a ``failure``, and records whether it was stopped."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.is_stopped = False

    @contextmanager
    def run(self, report: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
        report("loading")
        if self.failure is not None:
            raise self.failure
        try:
            yield FLEET
        finally:
            self.is_stopped = True


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet()
    demo = SimpleNamespace(demo_fleet=fleet.run, DemoUnavailable=NoEngineError, curl_line="curl {}".format)
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.demo", demo)
    return fleet


def test_serve_passes_its_settings_to_the_server_and_prints_nothing(
    proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.exit_code = 3

    assert main(["serve", "--backends", "http://a,http://b", "--port", "0", "--host", "::1"]) == 3

    expected = {"backends": ("http://a", "http://b"), "port": 0, "host": "::1"}
    assert proxy.settings == Settings().model_copy(update=expected)
    assert capfd.readouterr() == ("", "")


def test_serve_leaves_warnings_to_the_log_of_the_server(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROT", "1")
    warning = "environment: PROT is not a setting; did you mean PORT?"

    assert main(["serve", "--backends", "http://a"]) == 0

    assert proxy.warnings == (warning,)
    assert proxy.load is not None
    proxy.load()
    assert caplog.messages == [f"settings: {warning}"]
    assert capfd.readouterr().err == ""


def test_serve_passes_a_function_that_reloads_its_settings(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONFIG_FILE", "fleet.yaml")
    file = tmp_path / "fleet.yaml"
    file.write_text("backends: [{url: http://a}]")
    assert main(["serve", "--port", "0"]) == 0

    file.write_text("backends: [{url: http://a, weight: 2}, {url: http://b}]")

    assert proxy.load is not None
    again = proxy.load()
    assert ([backend.weight for backend in again.fleet], again.settings.port) == ([2, 1], 0)


def test_the_demo_puts_the_proxy_in_front_of_its_own_engines(
    proxy: Proxy, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKENDS", "http://not-used")
    port = free_port()
    assert main(["demo", "--port", str(port)]) == 0

    assert (proxy.settings.backends, proxy.settings.port) == (FLEET, port)
    assert fleet.is_stopped
    out, err = capfd.readouterr()
    assert out.startswith("loading\n")
    assert "listens at http://127.0.0.1:9000\n" in out
    assert "Dashboard: http://127.0.0.1:9000/\n" in out
    assert "\ncurl http://127.0.0.1:9000\n" in out
    assert err == ""


def test_the_demo_starts_no_engine_if_its_port_is_in_use(
    proxy: Proxy, fleet: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 1
    assert capfd.readouterr() == ("", f"cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use\n")


def test_the_name_of_a_new_key_is_checked(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "al ice"]) == 2
    assert capfd.readouterr() == ("", "NAME is 'al ice': it must be 1 to 64 letters, digits, '.', '_' and '-'\n")


def test_an_unavailable_demo_fails_with_one_line(proxy: Proxy, fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    fleet.failure = NoEngineError("the demo needs its packages")

    assert main(["demo", "--port", "0"]) == 1

    assert capfd.readouterr().err == "the demo needs its packages\n"


def test_a_demo_interrupted_while_starting_ends_without_a_traceback(
    proxy: Proxy, fleet: Fleet, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet.failure = KeyboardInterrupt()

    assert main(["demo", "--port", "0"]) == 130

    assert capfd.readouterr() == ("loading\n", "")


def test_a_demo_whose_proxy_fails_stops_its_engines(proxy: Proxy, fleet: Fleet) -> None:
    proxy.exit_code = 1

    assert main(["demo", "--port", "0"]) == 1

    assert fleet.is_stopped
