"""Which backend served a conversation last, known to all replicas: 16 bytes for each request, in batches.

A message that is lost costs one request its warm cache, so nothing is stored in the server.
"""

from __future__ import annotations

import asyncio
import struct
from itertools import chain

from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.questions import replica_of
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["SharedConversations", "TurnsOfReplicas"]

_TOPIC = "turns"
_SEND_SECONDS = 0.1  # in which a batch is collected; people and programs take longer for their next turn
_MOST_AT_ONCE = 4096
_ENTRY = struct.Struct("<qQ")


class SharedConversations:
    """The memory of this replica. It also keeps what has not been sent to other replicas yet.

    Args:
        memory: of all workers of this replica.

    Attributes:
        recall: as of :class:`ConversationMemory`.
        hear: remembers what other replicas tell.
        unsent: what other replicas do not know yet.
    """

    def __init__(self, memory: ConversationMemory) -> None:
        self.recall = memory.recall
        self.hear = memory.remember
        self.unsent: dict[int, int] = {}

    def remember(self, key: int, number: int) -> None:
        """See :class:`ConversationMemory`."""
        self.hear(key, number)
        self.unsent[key] = number


class TurnsOfReplicas:
    """Tells other replicas of conversations, and listens to theirs.

    Args:
        conversations: of this replica.
        state: the shared state.
        broadcast: its messages; this object must be made before they are received.
        listens: whether this process listens for its replica.
    """

    def __init__(
        self, conversations: SharedConversations, state: SharedState, broadcast: Broadcast, *, listens: bool
    ) -> None:
        self._conversations = conversations
        self._broadcast = broadcast
        self._replica = replica_of(state.member).encode()
        if listens:
            broadcast.receive(_TOPIC, Receiver(self._on_message))

    async def run(self) -> None:
        """Tell other replicas what this process learns, until cancelled."""
        unsent = self._conversations.unsent
        while True:
            await asyncio.sleep(_SEND_SECONDS)
            if not unsent:
                continue
            entries = list(unsent.items())[-_MOST_AT_ONCE:]
            unsent.clear()
            packed = struct.pack("<" + "qQ" * len(entries), *chain.from_iterable(entries))
            try:
                await self._broadcast.send(_TOPIC, self._replica + b" " + packed)
            except StateUnavailableError:
                continue

    def _on_message(self, message: bytes) -> None:
        sender, _, packed = message.partition(b" ")
        if sender != self._replica and len(packed) % _ENTRY.size == 0:
            hear = self._conversations.hear
            for key, number in _ENTRY.iter_unpack(packed):
                hear(key, number)
