"""The other workers, as one worker sees them: what they answer when they are asked.

Each worker listens on a Unix socket without a file, so that nothing is left behind whoever is killed, and a file system
that cannot be written to does no harm. The kernel says whose process asks, which has to be one of the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Answers", "Siblings", "inboxes"]

_ANSWER_SECONDS = 1.0  # an event loop that is later than this is overloaded, and has nothing to spare for questions
_LONGEST_QUESTION_BYTES = 256
_CREDENTIALS = struct.Struct("3i")  # struct ucred of <sys/socket.h>: process, user, group

Answers = Mapping[str, Callable[[], bytes]]
"""By question."""


def inboxes(count: int) -> list[socket.socket]:
    """A socket for each worker, where its siblings ask it; the kernel finds a name for it (unix(7), autobind)."""
    made = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
    for inbox in made:
        inbox.bind("")
        inbox.listen()
    return made


class Siblings:
    """All workers but this one.

    Args:
        addresses: of the inboxes of all workers, by their numbers.
        number: this worker's own.

    Attributes:
        others: the numbers of the siblings; empty: this process is the only one.
    """

    def __init__(self, addresses: Sequence[bytes] = (), number: int = 0) -> None:
        self._addresses = addresses
        self.number = number
        self.others = tuple(other for other in range(len(addresses)) if other != number)

    async def ask(self, question: str) -> dict[int, bytes | None]:
        """What each sibling answers, by its number; ``None``: nothing in time."""
        answers = await asyncio.gather(*(self._ask(self._addresses[other], question) for other in self.others))
        return dict(zip(self.others, answers, strict=True))

    async def answer(self, inbox: socket.socket, answers: Answers) -> None:
        """Answer what siblings ask at ``inbox``, until cancelled."""

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                if _user_of(writer.get_extra_info("socket")) != os.getuid():
                    return
                async with asyncio.timeout(_ANSWER_SECONDS):
                    question = (await reader.readuntil(b"\n")).decode().rstrip()
                    answer = answers[question]()
                    writer.write(b"%d\n" % len(answer) + answer)
                    await writer.drain()

        server = await asyncio.start_unix_server(reply, sock=inbox, limit=_LONGEST_QUESTION_BYTES)
        async with server:
            await server.serve_forever()

    async def _ask(self, address: bytes, question: str) -> bytes | None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(sock=_connected(address))
                with contextlib.closing(writer):
                    writer.write(f"{question}\n".encode())
                    length = int(await reader.readuntil(b"\n"))
                    return await reader.readexactly(length)
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
            return None


def _connected(address: bytes) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        peer.connect(address)  # is done at once, or refused
    except OSError:
        peer.close()
        raise
    return peer


def _user_of(peer: socket.socket) -> int:
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)
