"""Two machines share an address with keepalived: it moves when, and only when, the other machine does better."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replicas.conftest import Report
from replicas.machine import Machine
from replicas.machines import CLIENT, FIRST, SECOND, Segment, has_namespaces, segment
from support.http_client import chat, send
from support.llama_server import LlamaServer
from support.waiting import eventually

pytestmark = pytest.mark.skipif(
    not has_namespaces() or not shutil.which("keepalived"), reason="needs keepalived, and root for network namespaces"
)
CLIENTS = 4
ANSWER_SECONDS = 2.0
"""A client gives up after that time: a machine that is gone answers nothing."""
MOST_SECONDS = 20.0
STAYS_SECONDS = 6.0

Fault = Callable[["Pair"], None]


@dataclass(slots=True)
class Pair:
    """Two machines, two engines, and a client."""

    segment: Segment
    machines: dict[str, Machine]
    engines: list[LlamaServer]

    @property
    def holder(self) -> Machine:
        """The machine that has the address."""
        [address] = self.segment.holders()
        return self.machines[address]

    @property
    def url(self) -> str:
        return self.machines[FIRST].url


@dataclass(slots=True)
class Answers:
    """What clients of the shared address have seen: one request after another, each on a new connection."""

    times: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    is_over: bool = False

    async def go_on(self, answers: int = 20) -> None:
        before = len(self.times)
        await eventually(lambda: len(self.times) >= before + answers, MOST_SECONDS * 2)

    def gap(self, since: float) -> float:
        """The longest time without an answer, in seconds."""
        times = [since, *(one for one in self.times if one > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.fixture
def network() -> Iterator[Segment]:
    with segment() as made, made.at(CLIENT):  # the test is the client
        yield made


@pytest.fixture(params=[True, False], ids=["nginx", "proxy"])
def pair(request: pytest.FixtureRequest, network: Segment, tmp_path: Path, tiny_model: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        options = ("--slots", "4", "--context", "8192", "--http-threads", "64")
        engines = [stack.enter_context(LlamaServer(tiny_model, *options, host=CLIENT)) for _ in range(2)]
        urls = [engine.url for engine in engines]
        machines = {
            own: Machine(stack, network, tmp_path / own, own, urls, has_nginx=request.param) for own in (FIRST, SECOND)
        }
        yield Pair(network, machines, engines)


@asynccontextmanager
async def asking(pair: Pair) -> AsyncIterator[Answers]:
    await eventually(lambda: len(pair.segment.holders()) == 1)
    answers = Answers()

    async def client() -> None:
        while not answers.is_over:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    reply = await send(pair.url, "/v1/chat/completions", chat(2))
                problem = "" if reply.status == 200 and reply.complete else f"{reply.status}"
            except (OSError, EOFError, TimeoutError) as error:
                problem = type(error).__name__
            if problem:
                answers.failures.append(problem)
                await asyncio.sleep(0.1)  # as a client that tries again
            else:
                answers.times.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
        try:
            await answers.go_on()
            yield answers
        finally:
            answers.is_over = True


def kill_the_proxy(pair: Pair) -> None:
    pair.holder.proxy.kill()


def stop_the_proxy(pair: Pair) -> None:
    pair.holder.proxy.signal(signal.SIGTERM)


def freeze_the_proxy(pair: Pair) -> None:
    pair.holder.proxy.signal(signal.SIGSTOP)


def kill_nginx(pair: Pair) -> None:
    pair.holder.kill_nginx()


def kill_keepalived(pair: Pair) -> None:
    pair.holder.kill_keepalived()


def cut_the_link(pair: Pair) -> None:
    pair.segment.cut(pair.holder.own)


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        (True, kill_nginx),
        (True, kill_keepalived),
        (True, cut_the_link),
        (False, kill_the_proxy),
        (False, stop_the_proxy),
        (False, freeze_the_proxy),
    ],
    indirect=["pair"],
)
async def test_the_address_moves_once_and_stays(pair: Pair, fault: Fault, report: Report) -> None:
    async with asking(pair) as answers:
        before = pair.holder
        failed_at = time.monotonic()
        fault(pair)
        await eventually(lambda: before.peer in pair.segment.holders(), MOST_SECONDS)
        moved_after = time.monotonic() - failed_at
        await answers.go_on()
        lost, gap = len(answers.failures), answers.gap(failed_at)
        report(
            f"{fault.__name__} of the machine with the address: it moved after {moved_after:.1f} s, {gap:.1f} s "
            f"without an answer, {lost} attempts of {CLIENTS} clients failed"
        )
        _mend(pair, before, fault)
        await answers.go_on(40)
        await eventually(lambda: pair.segment.holders() == [before.peer])
        answers.failures.clear()
        await asyncio.sleep(STAYS_SECONDS)  # the machine that is back does not take it
        assert pair.segment.holders() == [before.peer]
    assert answers.failures == []
    assert gap < MOST_SECONDS


def _mend(pair: Pair, machine: Machine, fault: Fault) -> None:
    if fault is cut_the_link:
        pair.segment.mend(machine.own)
    elif fault is kill_nginx:
        machine.start_nginx()
    elif fault is kill_keepalived:
        machine.start_keepalived()
    else:
        machine.proxy.kill()
        machine.start_proxy()


@pytest.mark.parametrize("pair", [True], indirect=True)
@pytest.mark.parametrize("fault", [kill_the_proxy, stop_the_proxy])
async def test_with_nginx_the_end_of_a_proxy_moves_nothing_and_fails_no_request(pair: Pair, fault: Fault) -> None:
    async with asking(pair) as answers:
        before = pair.holder
        fault(pair)
        await answers.go_on(100)
        await asyncio.sleep(STAYS_SECONDS)
        assert pair.holder is before
    assert answers.failures == []


@pytest.mark.parametrize("pair", [True, False], indirect=True, ids=["nginx", "proxy"])
async def test_the_end_of_all_engines_moves_nothing(pair: Pair) -> None:
    await eventually(lambda: len(pair.segment.holders()) == 1)
    before = pair.holder
    for engine in pair.engines:
        engine.kill()
    began = time.monotonic()
    while time.monotonic() < began + STAYS_SECONDS * 2:
        assert pair.holder is before
        await asyncio.sleep(0.1)
    assert (await send(pair.url, "/v1/chat/completions", chat(2))).status == 503
