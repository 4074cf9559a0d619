"""Captures packets to one TCP port of 127.0.0.1, because a dead or frozen engine cannot count its requests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Arrivals", "capture"]

_ETHERTYPE_IPV4 = 0x0800
_SOL_PACKET = 263  # <linux/if_packet.h>; Python's socket module lacks these two constants
_PACKET_IGNORE_OUTGOING = 23  # on the loopback interface, every packet appears twice
_SO_ATTACH_FILTER = 26
_KEPT_BYTES = 64  # enough for the IPv4 and TCP headers
_SYN, _SYN_ACK = 0x02, 0x12


@dataclass(slots=True)
class Arrivals:
    """Arrival times, by the clock that all processes share.

    Attributes:
        connections: every connection attempt, even if no process listens.
        requests: every POST, even if no process reads it.
    """

    connections: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)


@contextlib.contextmanager
def capture(port: int) -> Iterator[Arrivals | None]:
    """Record arrivals from now on; ``None`` if the user may not open a packet socket, which requires root."""
    try:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    except PermissionError:
        yield None
        return
    with packets:
        _attach_filter(packets, port)
        packets.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        packets.setblocking(False)
        packets.bind(("lo", _ETHERTYPE_IPV4))
        arrivals = Arrivals()
        loop = asyncio.get_running_loop()
        loop.add_reader(packets, _read, packets, arrivals)
        try:
            yield arrivals
        finally:
            loop.remove_reader(packets)


def _read(packets: socket.socket, arrivals: Arrivals) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = packets.recv(_KEPT_BYTES)
            tcp = (packet[0] & 0x0F) * 4
            times = arrivals.connections if packet[tcp + 13] & _SYN else arrivals.requests
            times.append(time.monotonic())


def _attach_filter(packets: socket.socket, port: int) -> None:
    """Accept only packets to the port that open a connection or begin with POST."""
    accept, drop = 15, 16  # instruction numbers
    program = [
        (0x30, 0, 0, 9),  # the IPv4 header's protocol
        (0x15, 0, drop - 2, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 0),  # X: length of the IPv4 header
        (0x48, 0, 0, 2),  # destination port
        (0x15, 0, drop - 5, port),
        (0x50, 0, 0, 13),  # flags
        (0x54, 0, 0, _SYN_ACK),
        (0x15, accept - 8, 0, _SYN),
        (0x50, 0, 0, 12),  # data offset, in the upper four bits, in words of 4 bytes
        (0x54, 0, 0, 0xF0),
        (0x74, 0, 0, 2),
        (0x0C, 0, 0, 0),  # + X
        (0x07, 0, 0, 0),  # X: where the payload begins
        (0x40, 0, 0, 0),  # its first four bytes; a packet without that many is dropped here
        (0x15, 0, 1, int.from_bytes(b"POST", "big")),
        (0x06, 0, 0, _KEPT_BYTES),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))
