"""Servers that are no HTTP servers, and connections that wait for them only shortly, or find no way."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["impatient", "no_way", "rude", "silent"]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers nothing."""
    await reader.read()
    writer.close()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers as a mail server."""
    await reader.readline()
    writer.write(b"220 mail.example.com ESMTP\r\n")
    writer.close()


def impatient(connect: Callable[..., socket.socket]) -> Callable[..., socket.socket]:
    """Makes connections with a short timeout, so that a test does not wait for the usual one."""

    def connected(*arguments: Any, **options: Any) -> socket.socket:
        made = connect(*arguments, **options)
        made.settimeout(0.5)
        return made

    return connected


def no_way(*_arguments: Any, **_options: Any) -> NoReturn:
    """A connection where the system knows no route."""
    raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
