"""Start, signals, crashes and shutdown of several processes on one port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from end_to_end.test_workers import Streams, open_streams, worker_of
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import Call, send
from support.program import Proxy, program, run_command, started
from support.waiting import eventually


@pytest.fixture
def streams() -> Streams:
    return Streams()


async def refuses_connections(proxy: Proxy) -> bool:
    try:
        async with Call(proxy.url, "/livez"):
            return False
    except ConnectionResetError:  # it was in the backlog when the listener closed
        return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_to_all", [False, True], ids=["to the first process", "to all, as by Ctrl-C or systemd"])
async def test_shutdown_lets_the_streams_of_all_workers_finish(
    tmp_path: Path, streams: Streams, number: signal.Signals, is_to_all: bool
) -> None:
    async with Engine(streams) as engine, program(tmp_path, engine, WORKERS="2") as proxy:
        async with open_streams(proxy, 4) as calls:
            (proxy.signal_all if is_to_all else proxy.signal)(number)
            await eventually(lambda: refuses_connections(proxy))
            await asyncio.sleep(1)  # in this time, a worker that got the signal twice would have cut them
            streams.may_end.set()

            assert all([(await call.reply()).complete for call in calls])
            assert await proxy.ended() == 0


async def test_second_signal_stops_all_workers_at_once(tmp_path: Path, streams: Streams) -> None:
    async with Engine(streams) as engine, program(tmp_path, engine, WORKERS="2") as proxy:
        async with open_streams(proxy, 4) as calls:
            proxy.signal(signal.SIGTERM)
            await eventually(lambda: refuses_connections(proxy))

            proxy.signal(signal.SIGTERM)

            assert await proxy.ended() == 0
            for call in calls:
                reply = await call.reply()
                assert not reply.complete
                assert b'"code": "shutting_down"' in reply.body


async def test_readiness_probe_of_one_worker_makes_all_workers_wait_before_they_stop(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine:
        async with program(tmp_path, engine, WORKERS="2", DRAIN_GRACE_SECONDS="3") as proxy:
            assert (await send(proxy.url, "/readyz")).status == 200
            await send(proxy.url, "/health")  # by then, the other worker has received the message

            proxy.signal(signal.SIGTERM)

            await eventually(lambda: "stopping in 3 s" in proxy.events)
            replies = [await send(proxy.url, "/readyz") for _ in range(30)]
            assert {reply.status for reply in replies} == {503}
            assert len({worker_of(reply) for reply in replies}) == 2
            assert proxy.events.count("stopping in 3 s") == 2


async def test_reload_reaches_all_workers(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    async with Engine(answers_with(http_reply())) as one, Engine(answers_with(http_reply())) as other:
        fleet.write_text(f"backends: [{{url: '{one.url}'}}]")
        async with program(tmp_path / "proxy", WORKERS="2", CONFIG_FILE=str(fleet)) as proxy:
            proxy.signal(signal.SIGHUP)
            await eventually(lambda: proxy.events.count("reloaded, the fleet is unchanged") == 2)

            fleet.write_text(f"backends: [{{url: '{other.url}'}}]")
            os.kill(proxy.workers[0], signal.SIGKILL)  # its replacement reads the changed file
            await eventually(lambda: "serves again" in proxy.events)
            await eventually(lambda: only_uses(proxy, other))


async def only_uses(proxy: Proxy, engine: Engine) -> bool:
    return {(await proxy.post()).headers.get("x-backend") for _ in range(12)} == {engine.url}


async def test_killed_worker_breaks_only_its_own_requests_and_is_replaced(tmp_path: Path, streams: Streams) -> None:
    async with Engine(streams) as engine, program(tmp_path, engine, WORKERS="2") as proxy:
        async with open_streams(proxy, 6) as calls, asyncio.TaskGroup() as clients:
            asking = [clients.create_task(keep_asking(proxy)) for _ in range(4)]
            before = set(proxy.workers)

            os.kill(min(before), signal.SIGKILL)
            await eventually(lambda: "serves again" in proxy.events)
            await asyncio.sleep(0.2)
            for task in asking:
                task.cancel()
            streams.may_end.set()
            ended = {(worker_of(call), (await call.reply()).complete) for call in calls}

        assert len(ended) == 2  # those of one worker are complete, those of the other are not
        assert {is_whole for _, is_whole in ended} == {True, False}
        assert "ended with signal SIGKILL; its replacement starts now" in proxy.events
        assert len(set(proxy.workers) - before) == 1
        assert len({worker_of(await proxy.post("/props")) for _ in range(40)}) == 2
        await eventually(lambda: is_at_rest(proxy))


async def is_at_rest(proxy: Proxy) -> bool:
    return not any(one["requests_in_flight"] for one in (await send(proxy.url, "/health")).json["details"])


async def test_replacement_worker_that_fails_to_start_logs_why_and_the_others_continue(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: [{name: a, secret: sk-aaaaaaaaaaaaaaaaaaaaaaaa}]")
    async with Engine(answers_with(http_reply())) as engine:
        async with program(tmp_path / "proxy", engine, WORKERS="2", API_KEYS_FILE=str(keys)) as proxy:
            keys.write_text("keys: nonsense")
            os.kill(proxy.workers[0], signal.SIGKILL)

            await eventually(lambda: "its replacement starts in 1 s" in proxy.events)
            for _ in range(10):
                assert (await send(proxy.url, "/livez")).status == 200
            keys.write_text("keys: [{name: a, secret: sk-aaaaaaaaaaaaaaaaaaaaaaaa}]")
            await eventually(lambda: "serves again" in proxy.events)
        assert "keys.yaml" in proxy.events


async def keep_asking(proxy: Proxy) -> None:
    """No connection is refused; those that the killed worker had accepted may break."""
    while True:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError):
            await send(proxy.url, "/livez")


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path, streams: Streams, is_stopping: bool) -> None:
    async with Engine(streams) as engine, AsyncExitStack() as stack:
        proxy = await started(stack, tmp_path, engine, WORKERS="2")
        async with open_streams(proxy, 4) as calls:
            workers = proxy.workers
            stack.callback(kill_remaining, workers)
            if is_stopping:
                proxy.signal(signal.SIGTERM)
                await eventually(lambda: refuses_connections(proxy))
            proxy.signal(signal.SIGKILL)
            await eventually(lambda: refuses_connections(proxy))
            await asyncio.sleep(1)  # in this time, a worker that stops at once would have cut them
            streams.may_end.set()
            assert all([(await call.reply()).complete for call in calls])
        await eventually(lambda: not any(map(lives, workers)))
        assert proxy.events.count("the supervisor has ended") == 2


def kill_remaining(pids: list[int]) -> None:
    """Kill the processes that should have ended."""
    for pid in filter(lives, pids):
        os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether the process is alive, that is, exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("holder_workers", ["1", "2"])
async def test_port_in_use_is_one_line_with_workers(tmp_path: Path, holder_workers: str) -> None:
    async with Engine(answers_with(http_reply())) as engine, program(tmp_path, engine, WORKERS=holder_workers) as proxy:
        port = proxy.url.rpartition(":")[2]
        output = await asyncio.to_thread(_failed_start, tmp_path, PORT=port, BACKENDS=engine.url)
    assert output.count("\n") == 1
    assert f"cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use" in output


def test_unusable_files_are_one_line(tmp_path: Path) -> None:
    output = _failed_start(tmp_path, PORT="0", BACKENDS="http://127.0.0.1:9", API_KEYS_FILE="missing.yaml", exit_code=2)
    assert output.count("\n") == 1
    assert "missing.yaml" in output


def _failed_start(folder: Path, *, exit_code: int = 1, **settings: str) -> str:
    """The error output of a start with two workers, which must exit with this code."""
    done = run_command(folder, "serve", WORKERS="2", **settings)
    assert (done.returncode, done.stdout) == (exit_code, "")
    return done.stderr
