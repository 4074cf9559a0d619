from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.host import SharedPort, listen, url_of

_PRINT_LIMIT = """
import resource, sys
from inference_engine_proxy_server.processes.host import connection_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
print(connection_limit())
"""


@pytest.mark.parametrize(("files", "connections"), [(256, 102), (1000, 400)])
def test_connection_limit_is_two_fifths_of_the_file_limit(files: int, connections: int) -> None:
    # In a separate process, because a lowered limit cannot be raised again.
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_LIMIT, str(files)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == connections


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def test_connections_to_a_shared_port_are_distributed_over_all_listeners(stack: ExitStack) -> None:
    port = SharedPort("PORT", "127.0.0.1", 0)
    listeners = [stack.enter_context(port.listener()) for _ in range(3)]
    assert {listener.getsockname() for listener in listeners} == {port.address}

    for _ in range(150):
        stack.enter_context(socket.create_connection(port.address))

    accepted = Counter(dict.fromkeys(range(3), 0))
    for number, listener in enumerate(listeners):
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                stack.enter_context(listener.accept()[0])
                accepted[number] += 1
    assert accepted.total() == 150
    assert min(accepted.values()) > 20  # 50 expected each; 20 is five standard deviations away


def test_a_shared_port_cannot_be_taken_a_second_time(stack: ExitStack) -> None:
    port = SharedPort("PORT", "127.0.0.1", 0)
    stack.enter_context(port.listener())
    for take in (listen, SharedPort):
        text = f"cannot listen on HOST 127.0.0.1, PORT {port.address[1]}: Address already in use"
        with pytest.raises(OSError, match=f"^{text}$"):
            take("PORT", "127.0.0.1", port.address[1])


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "no-such-host.invalid"])
@pytest.mark.parametrize("take", [listen, SharedPort])
def test_host_that_is_no_address_of_this_machine_is_a_wrong_setting(take: Callable[..., object], host: str) -> None:
    with pytest.raises(SettingsError, match=f"^HOST is '{host}': this machine has no such address "):
        take("PORT", host, 0)


def test_ipv6_addresses_in_urls_have_brackets() -> None:
    assert url_of(("127.0.0.1", 80), is_tls=False) == "http://127.0.0.1:80"
    assert url_of(("::1", 443, 0, 0), is_tls=True) == "https://[::1]:443"


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("host", ["::", "0:0::0"])
def test_a_server_on_every_ipv6_address_accepts_ipv4_connections(stack: ExitStack, host: str, is_shared: bool) -> None:
    if is_shared:
        shared = SharedPort("PORT", host, 0)
        listeners = [stack.enter_context(shared.listener()) for _ in range(2)]
    else:
        listeners = [stack.enter_context(listen("PORT", host, 0))]
    port = listeners[0].getsockname()[1]
    for address in ("127.0.0.1", "::1"):
        stack.enter_context(socket.create_connection((address, port), timeout=5))


def test_a_server_on_one_ipv6_address_accepts_no_ipv4_connections(stack: ExitStack) -> None:
    port = stack.enter_context(listen("PORT", "::1", 0)).getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
