"""The feed: nothing without viewers, one frame for all of them, and no memory for slow ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.feed import MOST_OTHERS, MOST_VIEWERS, Feed, Seat
from inference_engine_proxy_server.dashboard.reporter import Reporter
from inference_engine_proxy_server.dashboard.snapshot import Snapshot
from inference_engine_proxy_server.errors import CapacityError
from support.dashboards import Board
from support.waiting import eventually

OPERATORS = Audience("accepted", sees_addresses=True)
PUBLIC = Audience("required", sees_addresses=True)
HIDDEN = Audience("required", sees_addresses=False)


class Running:
    """A running feed, with counts of what it has done."""

    def __init__(self, board: Board, feed: Feed) -> None:
        self.board = board
        self.feed = feed
        self.moments = 0
        self.encoded: list[Audience] = []

    def watch(self, audience: Audience = OPERATORS) -> Watcher:
        return Watcher(self.feed.open(audience))


class Watcher:
    """A viewer that takes frames when the test wants."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self._frames = seat.frames()

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            frame = await anext(self._frames)
        head, _, data = frame.decode().partition("\ndata: ")
        number = int(head.partition("\n")[0].removeprefix("id: "))
        return {"number": number, **json.loads(data)}

    async def rest(self) -> int:
        """The number of frames up to the end of the feed."""
        async with asyncio.timeout(10):
            return len([frame async for frame in self._frames])


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    board = Board()
    found = Running(board, Feed(board.reporter, tick_seconds=0.01))
    make, encode = Reporter.moment, Snapshot.as_json

    async def counted_moment(self: Reporter, **options: Any) -> Any:
        found.moments += 1
        return await make(self, **options)

    def counted_encoding(self: Snapshot, audience: Audience, events: Any) -> Any:
        found.encoded.append(audience)
        return encode(self, audience, events)

    monkeypatch.setattr(Reporter, "moment", counted_moment)
    monkeypatch.setattr(Snapshot, "as_json", counted_encoding)
    task = asyncio.get_running_loop().create_task(found.feed.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_without_viewers_nothing_is_made(running: Running) -> None:
    await asyncio.sleep(0.1)
    assert running.moments == 0

    watcher = running.watch()
    await watcher.next()
    running.feed.leave(watcher.seat)
    await asyncio.sleep(0.05)  # a tick that had begun
    made = running.moments
    await asyncio.sleep(0.1)

    assert running.moments == made


async def test_ten_viewers_cost_one_frame_a_tick(running: Running) -> None:
    watchers = [running.watch() for _ in range(10)]
    for watcher in watchers:
        assert (await watcher.next())["complete"]
    assert running.encoded == [OPERATORS]
    running.encoded.clear()
    running.moments = 0

    for _ in range(5):
        frames = [await watcher.next() for watcher in watchers]
        assert len({frame["number"] for frame in frames}) == 1
        assert not any(frame["complete"] for frame in frames)

    assert len(running.encoded) == running.moments == 5


async def test_each_audience_has_its_own_frame(running: Running) -> None:
    watchers = [running.watch(audience) for audience in (OPERATORS, PUBLIC, HIDDEN, PUBLIC)]

    frames = [await watcher.next() for watcher in watchers]

    assert sorted(running.encoded) == sorted([OPERATORS, PUBLIC, HIDDEN])
    assert [[one["name"] for one in frame["backends"]] for frame in frames] == [
        ["a:1", "b:1"],
        ["http://a:1", "http://b:1"],
        ["backend-1", "backend-2"],
        ["http://a:1", "http://b:1"],
    ]
    assert [[one["url"] for one in frame["backends"]] for frame in frames[:3]] == [
        ["http://a:1", "http://b:1"],
        ["http://a:1", "http://b:1"],
        [None, None],
    ]
    assert ["usage" in frame for frame in frames[:3]] == [True, False, False]


async def test_events_of_requests_and_names_are_for_operators_only(running: Running) -> None:
    journal = running.board.journal
    journal.note("state", "Backend {backend} is down.", backend="http://a:1")
    journal.note("retry", "Request 1 goes elsewhere.", backend="http://a:1")
    journal.note("reload", "The fleet has changed: a:1 joined.")
    watchers = [running.watch(audience) for audience in (OPERATORS, PUBLIC, HIDDEN)]

    shown = [[event["text"] for event in (await watcher.next())["events"]] for watcher in watchers]

    assert [len(texts) for texts in shown] == [3, 1, 1]
    assert [texts[0] for texts in shown] == [
        "Backend a:1 is down.",
        "Backend http://a:1 is down.",
        "Backend backend-1 is down.",
    ]


async def test_later_frames_have_only_new_events_and_changed_totals(running: Running) -> None:
    running.board.journal.note("shed", "Before.")
    watcher = running.watch()
    first = await watcher.next()
    assert [event["text"] for event in first["events"]] == ["Before."]
    assert first["history"]["step"] == 10
    second = await watcher.next()
    assert second["events"] == []

    running.board.journal.note("shed", "After.")
    running.board.journal.note("shed", "Before.")
    news: list[tuple[int, str, int]] = []
    while len(news) < 2:
        frame = await watcher.next()
        news += [(event["id"], event["text"], event["count"]) for event in frame["events"]]

    assert sorted(news) == [(1, "Before.", 2), (2, "After.", 1)]


async def test_viewer_that_missed_a_frame_gets_a_complete_one_in_place_of_all(running: Running) -> None:
    quick, slow = running.watch(), running.watch()
    await slow.next()
    for _ in range(5):
        last = await quick.next()

    frame = await slow.next()

    assert frame["complete"]
    assert frame["number"] >= last["number"]
    assert not (await slow.next())["complete"]


async def test_seats_are_limited(running: Running) -> None:
    seats = [running.feed.open(PUBLIC) for _ in range(MOST_OTHERS)]
    with pytest.raises(CapacityError) as refused:
        running.feed.require_room(HIDDEN)
    assert (refused.value.status, refused.value.code) == (503, "too_many_viewers")
    for _ in range(MOST_VIEWERS - MOST_OTHERS):
        running.feed.require_room(OPERATORS)
        running.feed.open(OPERATORS)
    with pytest.raises(CapacityError):
        running.feed.require_room(OPERATORS)

    running.feed.leave(seats[0])

    running.feed.require_room(PUBLIC)


async def test_end_of_the_feed_is_the_end_for_all_viewers(running: Running) -> None:
    watcher = running.watch()
    await watcher.next()

    running.feed.close()

    late = running.watch()
    for viewer in (watcher, late):
        assert await viewer.rest() <= 1
    with pytest.raises(CapacityError):
        running.feed.require_room(OPERATORS)


async def test_those_who_ask_often_without_a_key_get_the_same_snapshot(running: Running) -> None:
    moments = [await running.board.reporter.recent_moment() for _ in range(5)]

    assert running.moments == 1
    assert len(set(map(id, moments))) == 1


async def test_feed_rests_while_a_tick_is_not_due() -> None:
    board = Board()
    feed = Feed(board.reporter, tick_seconds=3600)
    task = asyncio.get_running_loop().create_task(feed.run())
    first, second = Watcher(feed.open(PUBLIC)), Watcher(feed.open(PUBLIC))
    assert (await first.next())["number"] == 1

    assert (await second.next())["number"] == 1  # at once, from the tick that was

    third = Watcher(feed.open(HIDDEN))
    assert (await third.next())["number"] == 1
    task.cancel()
    await eventually(task.done)
