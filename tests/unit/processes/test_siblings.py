from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing

import pytest

from inference_engine_proxy_server.processes import siblings
from inference_engine_proxy_server.processes.siblings import Answers, Siblings, inboxes

_ASK = """
import os, socket, sys
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.connect(bytes.fromhex(sys.argv[1]))
try:
    peer.sendall(b"name\\n")
    print(peer.recv(100))
except OSError:  # the worker has closed the connection without reading
    print(b"")
"""


@asynccontextmanager
async def workers(*answers: Answers | None) -> AsyncIterator[list[Siblings]]:
    """One worker per item of ``answers``, which it returns; a worker with ``None`` returns none."""
    made = inboxes(len(answers))
    addresses = [inbox.getsockname() for inbox in made]
    them = [Siblings(addresses, number) for number in range(len(answers))]
    async with asyncio.TaskGroup() as group:
        answering = [
            group.create_task(one.answer(inbox, given))
            for one, inbox, given in zip(them, made, answers, strict=True)
            if given is not None
        ]
        yield them
        for task in answering:
            task.cancel()
    for inbox in made:
        inbox.close()


def named(name: str) -> Answers:
    return {"name": lambda: name.encode(), "long": lambda: name.encode() * 300_000}


async def test_a_worker_asks_each_sibling_but_not_itself() -> None:
    async with workers(named("a"), named("b"), named("c")) as them:
        assert await them[0].ask("name") == {1: b"b", 2: b"c"}
        assert await them[2].ask("long") == {0: b"a" * 300_000, 1: b"b" * 300_000}


async def test_a_single_process_has_no_siblings_to_ask() -> None:
    assert Siblings().others == ()
    assert await Siblings().ask("name") == {}


async def test_a_silent_sibling_has_no_answer_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "_ANSWER_SECONDS", 0.1)
    async with workers(named("a"), None, named("c")) as them:
        assert await them[0].ask("name") == {1: None, 2: b"c"}


async def test_a_dead_sibling_has_no_answer() -> None:
    made = inboxes(2)
    addresses = [inbox.getsockname() for inbox in made]
    made[1].close()
    assert await Siblings(addresses, 0).ask("name") == {1: None}
    made[0].close()


async def test_a_truncated_answer_is_none() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"100\nhalf")
        writer.close()

    first, second = inboxes(2)
    async with await asyncio.start_unix_server(half, sock=second):
        assert await Siblings([first.getsockname(), second.getsockname()], 0).ask("name") == {1: None}
    first.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
async def test_other_users_get_no_answer() -> None:
    async with workers(named("a"), named("b")) as them:
        address: Sequence[int] = them[0]._addresses[1]  # noqa: SLF001 - other users can learn it from the kernel
        ask = [sys.executable, "-c", _ASK, bytes(address).hex()]
        done = await asyncio.to_thread(subprocess.run, ask, capture_output=True, timeout=20, check=True)
        assert done.stdout == b"b''\n"


def test_inboxes_leave_no_file_behind() -> None:
    [inbox] = inboxes(1)
    with closing(inbox):
        assert inbox.family is socket.AF_UNIX
        assert inbox.getsockname()[:1] == b"\0"
