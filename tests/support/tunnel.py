"""A proxy in front of another server, on a real socket, that delays or rejects as badly configured proxies do."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

__all__ = ["Relay", "as_it_comes", "at_the_end", "compressed", "in_clumps", "old_http", "rejecting", "tunnel"]

Relay = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
"""Relays the reply to a request, whose header section it gets, until the server closes the connection."""

_CLUMP_SECONDS = 3.0
_IS_STREAM = re.compile(rb"GET \S*/pulse")


async def as_it_comes(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
    """Delays nothing."""
    while block := await reply.read(65536):
        client.write(block)
        await client.drain()


async def in_clumps(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
    """Holds the bytes of a stream for three seconds, like a buffer of some kilobytes."""
    if not _IS_STREAM.match(head):
        return await as_it_comes(reply, client, head)
    while True:
        held, ends_at = b"", time.monotonic() + _CLUMP_SECONDS
        while (left := ends_at - time.monotonic()) > 0:
            try:
                block = await asyncio.wait_for(reply.read(65536), left)
            except TimeoutError:
                break
            if not block:
                return None
            held += block
        client.write(held)


async def at_the_end(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
    """Holds a stream until it ends."""
    if not _IS_STREAM.match(head):
        return await as_it_comes(reply, client, head)
    client.write(await reply.read())
    return None


async def compressed(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
    """Compresses each block of a stream on its own, which delays nothing."""
    if not _IS_STREAM.match(head):
        return await as_it_comes(reply, client, head)
    await reply.readuntil(b"\r\n\r\n")
    client.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n")
    packer = zlib.compressobj(wbits=31)
    while size := int(await reply.readline(), 16):
        block = (await reply.readexactly(size + 2))[:size]
        client.write(packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH))
    return None


async def old_http(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
    """Answers with HTTP/1.0, if the reply is no stream."""
    if _IS_STREAM.match(head):
        return await as_it_comes(reply, client, head)
    client.write((await reply.readuntil(b"\r\n")).replace(b"HTTP/1.1", b"HTTP/1.0"))
    return await as_it_comes(reply, client, head)


def rejecting(status: int, is_rejected: Callable[[bytes], object]) -> Relay:
    """Answers requests with ``status`` if their header section is such."""

    async def relay(reply: asyncio.StreamReader, client: asyncio.StreamWriter, head: bytes) -> None:
        if is_rejected(head):
            client.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)
        else:
            await as_it_comes(reply, client, head)

    return relay


@asynccontextmanager
async def tunnel(url: str, relay: Relay = as_it_comes) -> AsyncIterator[str]:
    """A proxy in front of the server at ``url``; its base URL. Each connection is for one request."""
    host, port = url.removeprefix("http://").split(":")

    async def serve(reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            reply, server = await asyncio.open_connection(host, int(port))
            try:
                server.write(head)
                async with asyncio.TaskGroup() as both:
                    sending = both.create_task(_copy(reader, server))
                    await relay(reply, client, head)
                    sending.cancel()
            finally:
                server.close()
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            client.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**17) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client leaves, which ends the connection to the server, too."""
    while block := await reader.read(65536):
        writer.write(block)
    writer.close()
