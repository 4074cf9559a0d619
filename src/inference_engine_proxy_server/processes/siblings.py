"""Requests from one worker to its siblings.

Each worker listens on an abstract Unix socket, which has no file: a killed process leaves nothing behind, and a
read-only file system is no problem. The kernel reports the peer's user, which must be the worker's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Answers", "Siblings", "inboxes"]

_ANSWER_SECONDS = 1.0  # an event loop that lags further behind is overloaded, and must not spend time on answers
_LONGEST_QUESTION_BYTES = 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred of <sys/socket.h>: process, user, group

Answers = Mapping[str, Callable[..., bytes]]
"""Functions that produce the answers, by query. The part of a query after a space is the function's argument."""


def inboxes(count: int) -> list[socket.socket]:
    """One socket per worker for queries of its siblings; the kernel chooses the names (unix(7), autobind)."""
    made = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
    for inbox in made:
        inbox.bind("")
        inbox.listen()
    return made


class Siblings:
    """All workers except this one.

    Args:
        addresses: of all workers' inboxes, indexed by worker number.
        number: this worker's number.

    Attributes:
        others: the siblings' numbers; empty if this process is the only one.
    """

    def __init__(self, addresses: Sequence[bytes] = (), number: int = 0) -> None:
        self._addresses = addresses
        self.number = number
        self.others = tuple(other for other in range(len(addresses)) if other != number)

    async def ask(self, question: str) -> dict[int, bytes | None]:
        """Each sibling's answer, by worker number; ``None`` if there was no answer in time."""
        return await self.ask_each(dict.fromkeys(self.others, question))

    async def ask_each(self, questions: Mapping[int, str], seconds: float = _ANSWER_SECONDS) -> dict[int, bytes | None]:
        """The answers to a question for each sibling, by worker number, as far as they come within ``seconds``."""
        asked = [self._ask(self._addresses[other], question, seconds) for other, question in questions.items()]
        return dict(zip(questions, await asyncio.gather(*asked), strict=True))

    async def answer(self, inbox: socket.socket, answers: Answers) -> None:
        """Answer queries of siblings at ``inbox``, until cancelled."""

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                if _user_of(writer.get_extra_info("socket")) != os.getuid():
                    return
                async with asyncio.timeout(_ANSWER_SECONDS):
                    question = (await reader.readuntil(b"\n")).decode().rstrip()
                    name, *arguments = question.split(" ", 1)
                    answer = answers[name](*arguments)
                    writer.write(b"%d\n" % len(answer) + answer)
                    await writer.drain()

        server = await asyncio.start_unix_server(reply, sock=inbox, limit=_LONGEST_QUESTION_BYTES)
        async with server:
            await server.serve_forever()

    async def _ask(self, address: bytes, question: str, seconds: float) -> bytes | None:
        try:
            async with asyncio.timeout(seconds):
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
        peer.connect(address)  # succeeds or fails immediately
    except OSError:
        peer.close()
        raise
    return peer


def _user_of(peer: socket.socket) -> int:
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)
