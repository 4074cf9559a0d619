"""Messages to systemd, read by a datagram socket in its place."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_engine_proxy_server.processes.reloads import Reloads
from inference_engine_proxy_server.processes.service_manager import ServiceManager


class Listening:
    """A notify socket; ``address`` is the value of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def messages(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        while True:
            try:
                text = self._socket.recv(65_536).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in text.splitlines()))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    path = str(tmp_path / "notify")
    one = Listening(path if request.param == "path" else "@" + path)
    yield one
    one.close()


def test_each_message_has_the_lines_that_systemd_defines(listening: Listening) -> None:
    manager = ServiceManager(listening.address)

    manager.ready("listening")
    before = time.monotonic_ns() // 1000
    manager.reloading("reading")
    manager.is_alive()
    manager.report("two\nlines")
    manager.stopping("stopping", 365)

    ready, reloading, alive, report, stopping = listening.messages()
    assert ready == {"READY": "1", "STATUS": "listening"}
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert reloading == {"RELOADING": "1", "STATUS": "reading"}
    assert alive == {"WATCHDOG": "1"}
    assert report == {"STATUS": "two lines"}
    assert stopping == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "365000000", "STATUS": "stopping"}


def test_nothing_is_reported_after_another_process_has_become_the_service(listening: Listening) -> None:
    manager = ServiceManager(listening.address)

    manager.hand_over(4711, "taken over")
    manager.stopping("stopping", 1)

    assert listening.messages() == [{"MAINPID": "4711", "READY": "1", "STATUS": "taken over"}]


def test_a_manager_that_has_gone_does_not_disturb_the_service(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).ready("listening")


def test_a_manager_that_does_not_read_does_not_block_the_service(listening: Listening) -> None:
    manager = ServiceManager(listening.address)
    for _ in range(5000):
        manager.is_alive()
    assert 0 < len(listening.messages()) < 5000


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(variables: dict[str, str], seconds: float | None) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": "/run/notify", **variables}, 7)
    assert manager.watchdog_seconds == seconds
    assert manager.beat_seconds == (None if seconds is None else seconds / 4)


def test_without_a_notify_socket_there_is_no_watchdog() -> None:
    assert ServiceManager.of({"WATCHDOG_USEC": "30000000"}, 7).watchdog_seconds is None


def test_a_reload_ends_when_the_last_worker_has_ended_its_own(listening: Listening) -> None:
    reloads = Reloads(ServiceManager(listening.address))

    reloads.begin([0, 1], "listening")
    reloads.end(1)
    reloads.end(1)
    reloads.check()
    assert [list(one) for one in listening.messages()] == [["RELOADING", "MONOTONIC_USEC", "STATUS"]]
    reloads.end(0)
    assert listening.messages() == [{"READY": "1", "STATUS": "listening"}]
