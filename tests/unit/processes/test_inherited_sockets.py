"""Socket activation, with real sockets; the suite `systemd` passes them on as systemd does."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets, inherited_sockets

_FIRST = 300  # above all that this process has open
_PID = 7


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def inherited(*given: int, **variables: str) -> tuple[InheritedSockets | None, dict[str, str]]:
    """What a process finds that is started with copies of these descriptors, and its variables afterwards."""
    environ = {"LISTEN_PID": str(_PID), "LISTEN_FDS": str(len(given)), "HOME": "/", **variables}
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD, _FIRST + at) for at, number in enumerate(given)]
    assert copies == list(range(_FIRST, _FIRST + len(given)))
    try:
        return inherited_sockets(environ, _PID, _FIRST), environ
    except SettingsError:
        for copy in copies:
            os.close(copy)
        raise


def test_named_sockets_are_for_operators_and_all_others_for_clients(stack: ExitStack) -> None:
    made = [
        stack.enter_context(socket.create_server(address, family=family))
        for address, family in (
            (("127.0.0.1", 0), socket.AF_INET),
            (("127.0.0.1", 0), socket.AF_INET),
            (("::1", 0), socket.AF_INET6),
        )
    ]

    found, environ = inherited(*(one.fileno() for one in made), LISTEN_FDNAMES="inference-proxy.socket:admin")

    assert found is not None
    for one in (*found.clients, *found.operators):
        stack.enter_context(one)
    names = [one.getsockname() for one in made]
    assert [one.getsockname() for one in found.clients] == [names[0], names[2]]
    assert [one.getsockname() for one in found.operators] == [names[1]]
    assert not any(os.get_inheritable(one.fileno()) for one in found.clients)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("variables", [{"LISTEN_PID": "8", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "0"}])
def test_sockets_for_another_process_are_left_alone(variables: dict[str, str]) -> None:
    assert inherited(**variables) == (None, {"HOME": "/"})


@pytest.mark.parametrize(
    ("family", "kind", "listens", "problem"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, False, "does not listen: use Accept=no"),
        (socket.AF_INET, socket.SOCK_DGRAM, False, "is not a TCP socket: use ListenStream="),
        (socket.AF_UNIX, socket.SOCK_STREAM, True, "is not a TCP socket: ListenStream= must be a port"),
    ],
)
def test_other_sockets_are_refused_with_advice(
    family: socket.AddressFamily, kind: socket.SocketKind, listens: bool, problem: str
) -> None:
    with socket.socket(family, kind) as one:
        if listens:
            one.bind("")
            one.listen()
        with pytest.raises(SettingsError) as raised:
            inherited(one.fileno(), LISTEN_FDNAMES="mine")
    assert str(raised.value).startswith(f"socket activation: file descriptor {_FIRST} (mine) {problem}")


def test_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(SettingsError, match=f"^socket activation: file descriptor {_FIRST} is not a socket$"):
            inherited(file.fileno())


def test_a_number_of_sockets_that_is_no_number_is_refused() -> None:
    with pytest.raises(SettingsError, match="LISTEN_FDS is 'two'"):
        inherited(LISTEN_FDS="two")


def test_missing_sockets_are_refused() -> None:
    with pytest.raises(SettingsError, match=f"file descriptor {_FIRST}: Bad file descriptor; nothing was passed on"):
        inherited(LISTEN_FDS="1")


def test_a_socket_for_operators_alone_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        with pytest.raises(SettingsError, match="there is only a socket for ADMIN_PORT"):
            inherited(one.fileno(), LISTEN_FDNAMES="admin")
