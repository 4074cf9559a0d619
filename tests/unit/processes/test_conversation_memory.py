"""The memory of conversations has a fixed size, and all workers read what any of them writes."""

from __future__ import annotations

import os

from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def test_numbers_are_remembered_by_key() -> None:
    memory = ConversationMemory()
    memory.remember(LOWEST, 2**64 - 1)
    memory.remember(HIGHEST, 7)
    memory.remember(5, 8)
    memory.remember(5, 9)
    assert [memory.recall(key) for key in (LOWEST, HIGHEST, 5, 6)] == [2**64 - 1, 7, 9, None]


def test_newer_key_replaces_an_older_one_in_its_entry() -> None:
    memory = ConversationMemory(entries=4)
    for key in range(100):
        memory.remember(key, key)
    assert [key for key in range(100) if memory.recall(key) is not None] == [96, 97, 98, 99]


def test_forked_process_writes_what_its_parent_reads() -> None:
    memory = ConversationMemory()
    child = os.fork()
    if not child:
        memory.remember(hash(("m", b"text")), 3)
        os._exit(0)
    os.waitpid(child, 0)
    assert memory.recall(hash(("m", b"text"))) == 3
