"""Messages from one member to all others, by Redis' publish and subscribe.

A message reaches the members that are subscribed at that moment, and no others: it must only announce what is stored
under a key, too. After each subscription, also after a lost connection, a receiver therefore reads what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.asyncio.client import PubSub

from inference_engine_proxy_server.state.redis_client import CALL_SECONDS, REDIS_ERRORS
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError

__all__ = ["Broadcast", "Receiver"]

_SILENCE_SECONDS = 5.0  # after which a ping shows whether the connection still works
_PAUSE_SECONDS = 0.5  # between two attempts to subscribe


async def _nothing() -> None:
    """What was missed does not matter."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """Takes the messages of one topic.

    Attributes:
        on_message: called with each message, in order, those of this member included.
        on_subscribed: called after each subscription: messages may have been missed. Messages that arrive meanwhile
            follow after it has ended. It may raise ``StateUnavailableError``; then there is another subscription. By
            default, it does nothing.
    """

    on_message: Callable[[bytes], None]
    on_subscribed: Callable[[], Awaitable[None]] = _nothing


class Broadcast:
    """The topics of one process.

    Args:
        state: the shared state.
    """

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._receivers: dict[bytes, Receiver] = {}

    def receive(self, topic: str, receiver: Receiver) -> None:
        """Let ``receiver`` take the messages of ``topic``. Only before :meth:`run`."""
        self._receivers[self._channel(topic)] = receiver

    async def send(self, topic: str, message: bytes) -> None:
        """Send ``message`` to all members; raises ``StateUnavailableError`` as :meth:`.SharedState.call`."""
        await self._state.call(lambda: self._state.client.publish(self._channel(topic), message))

    async def run(self) -> None:
        """Receive messages until cancelled; ends at once when there are no receivers."""
        while self._receivers:
            if self._state.is_available:
                async with self._state.client.pubsub() as subscription:
                    await self._follow(subscription)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _follow(self, subscription: PubSub) -> None:
        """Receive messages until the connection is lost."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await subscription.subscribe(*self._receivers)
            for receiver in self._receivers.values():
                await receiver.on_subscribed()
            awaits_pong = False
            while True:
                message = await subscription.get_message(timeout=_SILENCE_SECONDS)
                if message is not None:
                    awaits_pong = False
                    if message["type"] == "message":
                        self._receivers[message["channel"]].on_message(message["data"])
                elif awaits_pong:
                    return
                else:
                    awaits_pong = True
                    async with asyncio.timeout(CALL_SECONDS):
                        await subscription.ping()
        except (*REDIS_ERRORS, StateUnavailableError):
            return  # the heartbeat logs it, if the server does not answer at all

    def _channel(self, topic: str) -> bytes:
        return self._state.key("topic", topic).encode()
