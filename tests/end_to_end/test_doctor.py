"""``inference-proxy doctor`` with real llama.cpp servers."""

from __future__ import annotations

import json
from pathlib import Path

from end_to_end.conftest import StartProxy, StartServers
from support.program import run_command


def test_good_servers_have_no_findings(start_servers: StartServers, tiny_model: Path, tmp_path: Path) -> None:
    servers = start_servers(2, tiny_model, "--slots", "2")
    done = run_command(tmp_path, "doctor", BACKENDS=",".join(server.url for server in servers))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 backends examined: 0 errors, 0 warnings, 0 notes.\n"


def test_servers_of_one_model_that_differ(start_servers: StartServers, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--slots", "2", "--alias", "m", "--context")
    [usual] = start_servers(1, tiny_model, *options, "8192")
    [odd] = start_servers(1, tiny_model, *options, "4096")
    done = run_command(tmp_path, "doctor", "--json", BACKENDS=f"{usual.url},{odd.url}")

    [found] = json.loads(done.stdout)["findings"]
    assert (found["code"], found["severity"], found["subject"]) == ("contexts_differ", "warning", "model m")
    assert f"127.0.0.1:{odd.port} has a context of 2,048 tokens" in found["problem"]
    assert done.returncode == 1
    (tmp_path / "fleet.yaml").write_text(
        f"backends: [{{url: '{usual.url}'}}, {{url: '{odd.url}', may_differ: [context]}}]"
    )
    done = run_command(tmp_path, "doctor", CONFIG_FILE="fleet.yaml")
    assert (done.returncode, done.stdout) == (0, "2 backends examined: 0 errors, 0 warnings, 0 notes.\n")


def test_the_public_address_leads_back_to_the_proxy(
    start_proxy: StartProxy, start_servers: StartServers, tiny_model: Path, tmp_path: Path, free_port: int
) -> None:
    [server] = start_servers(1, tiny_model)
    proxy = start_proxy(server)
    port = proxy.url.rpartition(":")[2]
    done = run_command(tmp_path, "doctor", "--through", proxy.url, BACKENDS=server.url, PORT=port)
    assert (done.returncode, done.stdout) == (0, "1 backends examined: 0 errors, 0 warnings, 0 notes.\n")

    done = run_command(tmp_path, "doctor", "--through", f"http://127.0.0.1:{free_port}", BACKENDS=server.url)
    assert done.returncode == 2
    assert "[public_refuses]" in done.stdout
    done = run_command(tmp_path, "doctor", "--through", "llm.example.com", BACKENDS=server.url)
    assert (done.returncode, "must begin with http" in done.stderr) == (2, True)


def test_each_problem_is_shown_with_its_remedy(
    start_servers: StartServers, tiny_model: Path, tmp_path: Path, free_port: int
) -> None:
    [one] = start_servers(1, tiny_model, "--slots", "1")
    backends = f"{one.url},http://127.0.0.1:{free_port}"
    done = run_command(tmp_path, "doctor", "--json", BACKENDS=backends)

    findings = json.loads(done.stdout)["findings"]
    assert [(one["code"], one["severity"], one["subject"]) for one in findings] == [
        ("backend_refuses", "error", f"backend 127.0.0.1:{free_port}"),
        ("single_slot", "warning", f"backend 127.0.0.1:{one.port}"),
    ]
    assert "--parallel 4" in findings[1]["remedy"]
    assert done.returncode == 2
    done = run_command(tmp_path, "doctor", BACKENDS=one.url)
    assert done.returncode == 1
    assert "WARNING  backend 127.0.0.1" in done.stdout
    assert done.stdout.endswith("1 backends examined: 0 errors, 1 warning, 0 notes.\n")


def test_settings_that_cannot_be_used_are_findings(tmp_path: Path) -> None:
    done = run_command(tmp_path, "doctor", BACKEND="http://127.0.0.1:1", PORT="x")

    assert done.returncode == 2
    assert "ERROR    settings  [settings_invalid]" in done.stdout
    assert "PORT is 'x'" in done.stdout
    assert "did you mean BACKENDS?" in done.stdout
