"""The connection to a real server: availability, members, messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference_engine_proxy_server.config.state_url import as_state_url
from inference_engine_proxy_server.state.broadcast import Broadcast, Receiver
from inference_engine_proxy_server.state.redis_client import make_client
from inference_engine_proxy_server.state.shared_state import SharedState, StateUnavailableError
from inference_engine_proxy_server.tasks.background import in_background
from support.redis_server import RedisServer
from support.waiting import eventually


@asynccontextmanager
async def member(url: str, name: str, prefix: str = "test") -> AsyncIterator[SharedState]:
    state = SharedState(make_client(as_state_url(url)), url, prefix, name)
    async with in_background({"shared state": state.run}):
        yield state
    await state.close()


async def test_members_know_each_other_and_forget_those_that_leave(server: RedisServer) -> None:
    async with member(server.url, "a.0.x") as one:
        async with member(server.url, "a.1.y"), member(server.url, "b.0.z"), member(server.url, "c.0.z", "other"):
            await eventually(lambda: one.members == ("a.0.x", "a.1.y", "b.0.z"))
            assert one.replicas == 2
        await eventually(lambda: one.members == ("a.0.x",))


async def test_a_silent_member_is_forgotten_and_a_fleet_leaves_no_keys(server: RedisServer) -> None:
    async with member(server.url, "a.0.x") as one:
        await eventually(lambda: one.is_available)
        await one.call(lambda: one.client.zadd("test:members", {"dead.0.x": time.time() * 1000}))
        await eventually(lambda: len(one.members) == 2)
        await eventually(lambda: len(one.members) == 1)
    async with member(server.url, "a.0.x", "other") as other:
        await eventually(lambda: other.is_available)
        assert await other.call(lambda: other.client.keys("test:*")) == []


async def test_a_server_that_goes_away_is_logged_once_and_once_again_when_it_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    returns: list[float] = []
    caplog.set_level(logging.INFO)
    async with member(server.url, "a.0.x") as state:
        state.on_return(lambda: returns.append(time.time()))
        await eventually(lambda: state.is_available)
        server.kill()
        await eventually(lambda: not state.is_available)
        await asyncio.sleep(3)
        with pytest.raises(StateUnavailableError):
            await state.call(lambda: state.client.get("x"))
        server.start()
        await eventually(lambda: state.is_available)
        assert state.members == ("a.0.x",)

    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("shared state")]
    assert [line.split(": ")[1].removeprefix(server.url)[:21] for line in lines] == [
        f"connected to {server.url}"[:21],
        " cannot be used",
        " answers again, after",
    ], lines
    assert len(returns) == 2
    assert state.failures == 1


async def test_a_frozen_server_holds_a_call_for_a_second_at_most(server: RedisServer) -> None:
    async with member(server.url, "a.0.x") as state:
        await eventually(lambda: state.is_available)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(StateUnavailableError):
            await state.call(lambda: state.client.get("x"))
        assert time.monotonic() - began < 2
        server.thaw()
        await eventually(lambda: state.is_available)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1", "Connect call failed"),
        ("redis://:wrong@127.0.0.1:{port}", "invalid username-password pair"),
        ("redis://127.0.0.1:{port}", "Authentication required"),
        ("redis://:secret-word@127.0.0.1:{port}/99", "DB index is out of range"),
    ],
)
async def test_the_log_says_why_the_server_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str, reason: str
) -> None:
    with RedisServer(tmp_path / "redis", "--requirepass", "secret-word") as server:
        async with member(url.format(port=server.port), "a.0.x") as state:
            await eventually(lambda: state.failures)
    assert reason in caplog.text
    assert "secret-word" not in caplog.text.replace("redis://:secret-word@", "")


async def test_a_password_a_database_and_a_socket_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(tmp_path / "redis", "--requirepass", "word", "--unixsocket", str(path)) as server:
        for url in (f"redis://:word@127.0.0.1:{server.port}/3", f"unix://:word@{path}?db=3"):
            async with member(url, "a.0.x") as state:
                await eventually(lambda: state.is_available)
                assert await state.call(lambda: state.client.dbsize()) == 1


class Inbox:
    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.subscriptions = 0

    async def on_subscribed(self) -> None:
        self.subscriptions += 1


async def test_messages_reach_all_members_and_a_lost_connection_is_subscribed_again(server: RedisServer) -> None:
    first, second = Inbox(), Inbox()
    async with member(server.url, "a.0.x") as one, member(server.url, "b.0.x") as two:
        loops = {}
        for state, inbox in ((one, first), (two, second)):
            broadcast = Broadcast(state)
            broadcast.receive("drains", Receiver(inbox.messages.append, inbox.on_subscribed))
            loops[state.member] = broadcast.run
        async with in_background(loops):
            await eventually(lambda: first.subscriptions == second.subscriptions == 1)
            await broadcast.send("drains", b"one")
            await eventually(lambda: first.messages == second.messages == [b"one"])
            server.kill()
            server.start()
            await eventually(lambda: first.subscriptions == second.subscriptions == 2)
            await broadcast.send("drains", b"two")
            await eventually(lambda: first.messages == second.messages == [b"one", b"two"])


async def test_a_subscription_whose_connection_is_silently_dead_is_made_again(server: RedisServer) -> None:
    inbox = Inbox()
    async with member(server.url, "a.0.x") as state:
        broadcast = Broadcast(state)
        broadcast.receive("drains", Receiver(inbox.messages.append, inbox.on_subscribed))
        async with in_background({"messages": broadcast.run}):
            await eventually(lambda: inbox.subscriptions == 1)
            server.freeze()
            await asyncio.sleep(12)
            server.thaw()
            await eventually(lambda: inbox.subscriptions == 2)
            await broadcast.send("drains", b"one")
            await eventually(lambda: inbox.messages == [b"one"])
