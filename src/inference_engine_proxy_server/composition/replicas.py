"""Builds what replicas tell each other by the state that they share. Without STATE_URL, nothing of it is imported."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from inference_engine_proxy_server.composition.state import Sharing
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.endpoints.all_workers import Order
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.membership import Membership
from inference_engine_proxy_server.processes.process_context import Loop, Loops, ProcessContext
from inference_engine_proxy_server.processes.roster import Command
from inference_engine_proxy_server.requests.turns import SharedTurn
from inference_engine_proxy_server.routing.affinity import AffinityTable
from inference_engine_proxy_server.routing.conversations import Conversations

if TYPE_CHECKING:
    from inference_engine_proxy_server.replicas.neighbours import Neighbours
    from inference_engine_proxy_server.replicas.turns import SharedConversations
    from inference_engine_proxy_server.state.records import Records

__all__ = ["Replicas", "build_affinity_table", "build_conversations", "build_replicas"]

_DOUBTS = "doubts"
_LOOK_SECONDS = 1.0
_FIRST_READ_SECONDS = 2.0  # for which the start waits; less if the server does not answer


@dataclass(frozen=True, slots=True)
class Replicas:
    """What this process tells other replicas, and hears from them.

    Attributes:
        sharing: the shared state.
        records: what all replicas have in common.
        neighbours: the other replicas.
        order: sends an operator's drain or undrain to all workers and replicas.
        change_roster: the same with a change of the backends that joined.
        loops: background tasks.
    """

    sharing: Sharing
    records: Records
    neighbours: Neighbours
    order: Order
    change_roster: Callable[[Command], None]
    loops: Loops

    async def first_read(self) -> None:
        """Wait until this process knows what others know, such as drained backends; not for long."""

        async def has_read() -> None:
            while not self.records.has_read and not self.sharing.state.failures:  # noqa: ASYNC110 - once, at the start
                await asyncio.sleep(_LOOK_SECONDS / 50)

        try:
            async with asyncio.timeout(_FIRST_READ_SECONDS):
                await has_read()
        except TimeoutError:
            return


def build_conversations(
    settings: Settings, process: ProcessContext
) -> tuple[Conversations, SharedConversations | None]:
    """Which backend served each conversation last; the second value sends this to other replicas, if there are any."""
    if settings.state_url is None:
        return Conversations(process.conversations), None
    from inference_engine_proxy_server.replicas.turns import SharedConversations

    shared = SharedConversations(process.conversations)
    return Conversations(shared, SharedTurn), shared


def build_affinity_table(sharing: Sharing | None, fleet: Fleet) -> tuple[AffinityTable, Mapping[str, Loop]]:
    """The table of backend-local resources, and its background task if it is shared."""
    if sharing is None:
        return AffinityTable(lambda: fleet.backends), {}
    from inference_engine_proxy_server.replicas.resources import SharedAffinityTable

    table = SharedAffinityTable(lambda: fleet.backends, sharing.state, sharing.broadcast)
    return table, {"shared resources": table.run}


def build_replicas(
    settings: Settings,
    sharing: Sharing | None,
    process: ProcessContext,
    fleet: Fleet,
    shared: SharedConversations | None,
    membership: Callable[[], Membership],
    own_fleet: Callable[[], Awaitable[dict[str, Any]]],
    own_usage: Callable[[Any], Awaitable[Any]],
) -> Replicas | None:
    """The parts that tell other replicas; ``None`` without shared state.

    Args:
        settings: all settings.
        sharing: the shared state.
        process: worker 0 speaks for its replica, and carries out what others tell.
        fleet: the backends.
        shared: the conversations that are sent to other replicas.
        membership: returns what carries out drains in this process.
        own_fleet: what all workers of this replica know of the fleet.
        own_usage: answers queries of the ledger.
    """
    if sharing is None or shared is None:
        return None
    from inference_engine_proxy_server.replicas.doubts import SharedDoubts
    from inference_engine_proxy_server.replicas.drains import DRAIN, DrainsOfReplicas, SharedDrains
    from inference_engine_proxy_server.replicas.joined import ADDED, JoinedAtReplicas, SharedRoster
    from inference_engine_proxy_server.replicas.neighbours import FLEET, USAGE, Neighbours
    from inference_engine_proxy_server.replicas.turns import TurnsOfReplicas
    from inference_engine_proxy_server.state.broadcast import Receiver
    from inference_engine_proxy_server.state.outbox import Outbox
    from inference_engine_proxy_server.state.questions import Questions
    from inference_engine_proxy_server.state.record_exchange import RecordExchange
    from inference_engine_proxy_server.state.records import Records

    state, broadcast = sharing.state, sharing.broadcast
    is_link = process.siblings.number == 0

    def is_lasting(name: str, value: object) -> bool:
        # A file may name a backend that was removed days ago. What has left the fleet cannot be drained any more.
        return name.startswith(ADDED) or (name.startswith(DRAIN) and value is not None)

    outbox, records = Outbox(broadcast), Records(is_lasting=is_lasting)
    exchange = RecordExchange(records, state, broadcast)

    answers = {FLEET: lambda _: own_fleet(), USAGE: own_usage} if is_link else None
    questions = Questions(state, broadcast, outbox, answers)
    neighbours = Neighbours(_name(settings), state, records, exchange, questions)
    doubts = SharedDoubts(fleet, state.member, partial(outbox.post, _DOUBTS))
    broadcast.receive(_DOUBTS, Receiver(doubts.hear))
    drains, roster = SharedDrains(records), SharedRoster(records, questions.replica)
    turns = TurnsOfReplicas(shared, state, broadcast, listens=is_link)
    loops: dict[str, Loop] = {
        "shared records": exchange.run,
        "messages to replicas": outbox.run,
        "shared conversations": turns.run,
    }

    def order(url: str, *, is_draining: bool, moves: bool) -> None:
        process.order(url, is_draining=is_draining, moves=moves)
        drains.command(url, is_draining=is_draining, moves=moves)

    def change_roster(command: Command) -> None:
        process.change_roster(command)
        roster.change(command)

    def carry_out(url: str, *, is_draining: bool, moves: bool) -> None:
        membership().obey(url, is_draining=is_draining, moves=moves)
        process.order(url, is_draining=is_draining, moves=moves)

    if is_link:
        neighbours.join()
        followed = DrainsOfReplicas(records, fleet, carry_out)
        joined = JoinedAtReplicas(state, records, neighbours.is_silent, process.roster, process.change_roster)
        loops["other replicas"] = _looking(neighbours.look, followed.look, joined.look)
        loops["questions of replicas"] = questions.run
    return Replicas(sharing, records, neighbours, order, change_roster, loops)


def _looking(*looks: Callable[[], None]) -> Loop:
    async def look() -> None:
        while True:
            for one in looks:
                one()
            await asyncio.sleep(_LOOK_SECONDS)

    return look


def _name(settings: Settings) -> str:
    """The name of this replica, for operators."""
    host = socket.gethostname()
    return f"{host}:{settings.port}" if settings.port else f"{host}, process {os.getpid()}"
