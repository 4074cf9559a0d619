"""What clients of NGINX lose when a replica or an engine ends, politely or not, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from replicas.conftest import Report, Site
from replicas.load import ALL_KINDS, REPEATABLE_KINDS, Load, Request, load
from support.program import Proxy
from support.waiting import eventually

FROZEN_SECONDS = 0.5
"""Enough for all bytes that were under way to arrive at the clients."""


async def freeze(replica: Proxy) -> None:
    replica.signal(signal.SIGSTOP)
    threads = Path(f"/proc/{replica.pid}/task")
    await eventually(lambda: all(") T " in (thread / "stat").read_text() for thread in threads.iterdir()))


async def is_at_rest(site: Site) -> None:
    """Wait until neither an engine nor a replica has work left."""
    await eventually(lambda: site.processing() == 0)
    for replica in site.replicas.values():
        await eventually(replica.is_at_rest)


def ids(requests: list[Request]) -> set[str]:
    return {request.request_id for request in requests}


def on(site: Site, running: Load, address: str, at: float) -> list[Request]:
    """The requests that were in flight at that time, and that NGINX had sent to this replica first."""
    tried = site.addresses_tried()
    return [one for one in running.requests if one.was_in_flight(at) and tried[one.request_id][0] == address]


@dataclass(slots=True)
class Killing:
    """A replica that is killed while nothing that it has in flight can change.

    Attributes:
        held: its requests that NGINX had sent to it and that had no complete reply.
        lost: those of them that must not be repeated.
    """

    address: str
    replica: Proxy
    killed_at: float = 0.0
    answering: set[str] = field(default_factory=set)
    held: list[Request] = field(default_factory=list)
    lost: list[Request] = field(default_factory=list)

    async def kill(self, running: Load) -> None:
        await freeze(self.replica)
        await asyncio.sleep(FROZEN_SECONDS)
        self.killed_at = time.monotonic()
        self.answering = ids([one for one in running.requests if one.has_begun_to_answer])
        self.replica.kill()

    def look_back(self, site: Site, running: Load) -> None:
        """Find out what it had in flight; after the load has ended, because NGINX logs a request at its end."""
        self.held = on(site, running, self.address, self.killed_at)
        self.lost = [one for one in self.held if one.request_id in self.answering or not one.kind.is_repeatable]


async def test_killed_replicas_lose_exactly_what_must_not_be_repeated(site: Site, report: Report) -> None:
    killings = []
    async with load(site.nginx.url, ALL_KINDS, clients=20) as running:
        for address, replica in list(site.replicas.items()):
            await running.goes_on(20)
            killing = Killing(address, replica)
            await killing.kill(running)
            killings.append(killing)
            await running.goes_on(20)
            await asyncio.to_thread(site.restart, address)
        await running.goes_on()
    for killing in killings:
        killing.look_back(site, running)
    held = [one for killing in killings for one in killing.held]
    lost = [one for killing in killings for one in killing.lost]
    report(
        f"4 of 4 replicas killed in turn: {len(running.requests)} requests, {len(held)} in flight on them, "
        f"{len(lost)} of these lost, 0 others"
    )
    assert ids(running.failed) == ids(lost), running.failed
    assert 0 < len(lost) < len(held)
    tried = site.addresses_tried()
    assert {len(tried[one.request_id]) for one in held if one not in lost} == {2}  # another replica answered these
    for killing in killings:
        assert not ids(killing.held) & {line.request_id for line in killing.replica.access_lines}
        later = [one for one in running.succeeded if one.began_at > killing.killed_at]
        # NGINX writes the line of a request after its reply, so the last ones may be missing.
        assert killing.address in {tried[one.request_id][0] for one in later if one.request_id in tried}
    await is_at_rest(site)


async def test_a_killed_engine_loses_nothing(site: Site) -> None:
    async with load(site.nginx.url, REPEATABLE_KINDS) as running:
        await running.goes_on()
        killed = site.engines[0]
        killed.kill()
        await running.goes_on()
        await asyncio.to_thread(site.restart_engine, killed)
        await running.goes_on()
    # Exceptions to the rule that streams continue; see "Resumed streams" in docs/reliability.md.
    refused = [await one.metric("stream_resume_refusals_total") for one in site.replicas.values()]
    assert len(running.failed) == sum(refused), running.failed
    assert sum(refused) <= 2  # streams with exactly one event of text
    await is_at_rest(site)


async def test_a_replica_and_an_engine_killed_at_once_lose_only_requests_of_that_replica(site: Site) -> None:
    killing = Killing(*next(iter(site.replicas.items())))
    async with load(site.nginx.url, REPEATABLE_KINDS) as running:
        await running.goes_on()
        killed = site.engines[0]
        killed.kill()
        await killing.kill(running)
        await running.goes_on()
        await asyncio.to_thread(site.restart_engine, killed)
        await asyncio.to_thread(site.restart, killing.address)
        await running.goes_on()
    killing.look_back(site, running)
    refused = sum([await one.metric("stream_resume_refusals_total") for one in site.replicas.values()])
    assert ids(running.failed) >= ids(killing.lost)
    assert len(running.failed) == len(killing.lost) + refused, running.failed
    await is_at_rest(site)


async def test_a_stopped_replica_loses_nothing(site: Site) -> None:
    address, replica = next(iter(site.replicas.items()))
    async with load(site.nginx.url, ALL_KINDS, clients=20) as running:
        await running.goes_on()
        replica.signal(signal.SIGTERM)
        assert await replica.ended() == 0
        await running.goes_on()
    assert running.failed == []
    del site.replicas[address]
    await is_at_rest(site)


async def test_replacing_every_replica_in_turn_loses_nothing(site: Site) -> None:
    async with load(site.nginx.url, ALL_KINDS, clients=20) as running:
        for address, replica in list(site.replicas.items()):
            await running.goes_on(20)
            replica.signal(signal.SIGTERM)
            assert await replica.ended() == 0
            await asyncio.to_thread(site.restart, address)
        await running.goes_on()
    assert running.failed == []
    served = Counter(tried[-1] for tried in site.addresses_tried().values())
    assert served.keys() == site.replicas.keys()
    await is_at_rest(site)


async def test_a_frozen_replica_delays_what_it_has_and_hardly_anything_else(site: Site, report: Report) -> None:
    address, replica = next(iter(site.replicas.items()))
    async with load(site.nginx.url, ALL_KINDS, clients=20) as running:
        await running.goes_on()
        await freeze(replica)
        frozen_at = time.monotonic()
        await running.goes_on(60)
        thawed_at = time.monotonic()
        stuck = [one for one in running.requests if one.was_in_flight(thawed_at) and one.began_at < thawed_at - 1]
        replica.signal(signal.SIGCONT)
        await running.goes_on()
    assert running.failed == []
    tried = site.addresses_tried()
    had = on(site, running, address, frozen_at)
    came = [
        one for one in running.requests if frozen_at < one.began_at < thawed_at and tried[one.request_id][0] == address
    ]
    report(
        f"1 of 4 replicas frozen for {thawed_at - frozen_at:.1f} s: {len(had)} requests in flight on it, {len(came)} "
        f"of {len(running.requests)} came later, {len(stuck)} took longer than 1 s"
    )
    assert len(had) + len(came) < 20 / 2  # of 20 clients; in turn, all would be stuck at last
    await is_at_rest(site)
