"""Ports, and the sockets that listen on them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
import uvloop

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets
from inference_engine_proxy_server.processes.ports import CLIENT_SOCKETS, Port, listen, open_ports, url_of


def shared_port(name: str, host: str, port: int) -> Port:
    return Port(name, [listen(name, host, port)], is_own=True, workers=3)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def test_connections_to_a_shared_port_are_distributed_over_all_listeners(stack: ExitStack) -> None:
    port = shared_port("PORT", "127.0.0.1", 0)
    listeners = [stack.enter_context(port.listeners(worker)[0]) for worker in range(3)]
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
    port = shared_port("PORT", "127.0.0.1", 0)
    stack.enter_context(port.listeners(0)[0])
    for take in (listen, shared_port):
        text = f"cannot listen on HOST 127.0.0.1, PORT {port.address[1]}: Address already in use"
        with pytest.raises(OSError, match=f"^{text}$"):
            take("PORT", "127.0.0.1", port.address[1])


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "no-such-host.invalid"])
@pytest.mark.parametrize("take", [listen, shared_port])
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
        shared = shared_port("PORT", host, 0)
        listeners = [stack.enter_context(shared.listeners(worker)[0]) for worker in range(2)]
    else:
        listeners = [stack.enter_context(listen("PORT", host, 0))]
    port = listeners[0].getsockname()[1]
    for address in ("127.0.0.1", "::1"):
        stack.enter_context(socket.create_connection((address, port), timeout=5))


def test_a_server_on_one_ipv6_address_accepts_no_ipv4_connections(stack: ExitStack) -> None:
    port = stack.enter_context(listen("PORT", "::1", 0)).getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def settings(**given: object) -> Settings:
    return Settings.model_validate({"host": "127.0.0.1", "port": 0, "backends": ("http://a:1",), **given})


@pytest.fixture
def server(stack: ExitStack) -> Callable[[], socket.socket]:
    return lambda: stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def test_every_worker_accepts_from_all_sockets_of_a_service_manager(server: Callable[[], socket.socket]) -> None:
    given = (server(), server())
    [port] = open_ports(settings(workers=3), InheritedSockets(given))

    assert [port.listeners(worker) for worker in range(3)] == [given] * 3
    port.close(port.listeners(0))
    assert [one.fileno() >= 0 for one in given] == [True, True]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_sockets_of_the_previous_program_are_shared_out_whatever_the_number_of_workers(
    stack: ExitStack, server: Callable[[], socket.socket], workers: int
) -> None:
    first = server()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    given = (first, *(stack.enter_context(_sharing(first)) for _ in range(2)))

    [port] = open_ports(settings(workers=workers), InheritedSockets(given, own=frozenset({"PORT"})))

    shares = [port.listeners(worker) for worker in range(workers)]
    taken = [one for share in shares for one in share]
    assert set(given) <= set(taken)  # no connection waits where nobody accepts it
    assert len(set(taken)) == len(taken) == workers * CLIENT_SOCKETS
    assert {len(share) for share in shares} == {CLIENT_SOCKETS}
    assert {one.getsockname() for one in taken} == {first.getsockname()}
    for one in taken:
        stack.enter_context(one)


def _sharing(one: socket.socket) -> socket.socket:
    return socket.create_server(one.getsockname(), reuse_port=True)


def test_a_worker_gets_new_sockets_after_its_own_were_closed(stack: ExitStack) -> None:
    [port] = open_ports(settings(workers=2))
    before = port.listeners(1)
    others = [stack.enter_context(one) for one in port.listeners(0)]
    port.close(before)
    after = [stack.enter_context(one) for one in port.listeners(1)]
    assert {one.getsockname()[1] for one in after} == {port.address[1]}
    assert set(port.open_sockets) == {*others, *after}
    assert len(after) == CLIENT_SOCKETS


def test_the_event_loop_accepts_several_connections_in_each_turn(stack: ExitStack) -> None:
    """From one socket it accepts one, so that the last client of a burst would wait for as many turns as clients."""
    [port] = open_ports(settings())
    listeners = [stack.enter_context(one) for one in port.listeners(0)]
    clients = 64

    async def turns_until_accepted() -> int:
        loop = asyncio.get_running_loop()
        accepted: list[asyncio.BaseTransport] = []
        closed: list[asyncio.Protocol] = []

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.append(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                del exc
                closed.append(self)

        for _ in range(clients):
            stack.enter_context(socket.create_connection(port.address))
        servers = [await loop.create_server(Accepted, sock=one) for one in listeners]
        turns = 0
        while len(accepted) < clients and turns < 10 * clients:
            turns += 1
            await asyncio.sleep(0)
        for server in servers:
            server.close()
        for transport in accepted:
            transport.close()
        while len(closed) < len(accepted):  # noqa: ASYNC110 - a loop that closes earlier waits for ever
            await asyncio.sleep(0)
        return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(turns_until_accepted())
    assert turns < clients / 2


def test_socket_for_operators_needs_their_port(server: Callable[[], socket.socket]) -> None:
    with pytest.raises(SettingsError, match="there is a socket for operators"):
        open_ports(settings(), InheritedSockets((server(),), (server(),)))


def test_a_port_without_an_inherited_socket_is_opened(
    stack: ExitStack, server: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    given = server()
    with caplog.at_level("INFO"):
        clients, operators = open_ports(settings(admin_port=0), InheritedSockets((given,)))

    assert (clients.is_own, operators.is_own) == (False, True)
    stack.enter_context(operators.listeners(0)[0])
    assert caplog.messages == [
        f"PORT: a service manager has opened 127.0.0.1, port {given.getsockname()[1]}; HOST and PORT are ignored"
    ]


def test_an_upgrade_that_would_change_the_port_says_that_it_does_not(
    server: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    given = server()
    open_ports(settings(port=1), InheritedSockets((given,), own=frozenset({"PORT"})))
    assert caplog.messages == [
        f"PORT is 1 now, but an upgrade keeps port {given.getsockname()[1]}; restart to change it"
    ]
