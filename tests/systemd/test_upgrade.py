"""Upgrades of the running program under load, with the test's own notify socket in place of systemd."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import Call, chat, send
from support.waiting import eventually
from systemd.load import answers_slowly, under_load
from systemd.service import lives, service

KEY = "key-of-the-operators"
BEARER = {"Authorization": f"Bearer {KEY}"}


def usual(engine: Engine, workers: int = 1, **further: str) -> dict[str, str]:
    """Settings with a free port."""
    return {
        "BACKENDS": engine.url, "PORT": "0", "HOST": "127.0.0.1", "WORKERS": str(workers),
        "MAX_ALLOWED_REQUEST_QUEUE": "100", "METRICS_CACHE_TTL_SECONDS": "1", **further,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 4])
async def test_five_upgrades_in_a_row_fail_no_request(tmp_path: Path, workers: int) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine, workers)) as proxy:
        pids = [proxy.main_pid]
        async with under_load(proxy.port) as outcomes:
            for number in range(5):
                proxy.versions.install(f"2.0.{number}")
                pids.append(await proxy.upgrade())
                await asyncio.sleep(2)

        assert outcomes.failed == []
        assert len(set(pids)) == 6
        assert outcomes.complete["stream"] > 20
        assert outcomes.reused > 200
        assert outcomes.complete["fresh"] > 200
        await eventually(lambda: not any(map(lives, pids[:-1])), 90)
        assert proxy.notify.has_heard(
            STATUS=f"listening on http://127.0.0.1:{proxy.port}"
            + (f" with {workers} workers" if workers > 1 else "")
            + ", version 2.0.4"
        )
        assert "Traceback" not in proxy.events


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("sys.exit(3)", "the new program ended before it served"),
        ("import os; os.environ['BACKENDS'] = 'nonsense'", "the new program ended before it served"),
        ("import os; os.kill(os.getpid(), 9)", "the new program ended before it served"),
    ],
    ids=["fails", "bad settings", "killed"],
)
async def test_a_version_that_does_not_start_changes_nothing(
    tmp_path: Path, workers: int, before: str, reason: str
) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine, workers)) as proxy:
        pid = proxy.main_pid
        async with under_load(proxy.port) as outcomes:
            proxy.versions.install("2.0.0", before=before)
            proxy.signal(signal.SIGUSR2)
            await eventually(lambda: f"upgrade: {reason}; this program continues" in proxy.events, 60)
            await asyncio.sleep(1)
            proxy.versions.install("2.0.1")
            assert await proxy.upgrade() != pid

        assert outcomes.failed == []
        [failure] = [one for one in proxy.notify.listen() if "the last upgrade failed" in one.get("STATUS", "")]
        assert failure["READY"] == "1"


async def test_a_version_that_never_serves_is_given_up(tmp_path: Path) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine)) as proxy:
        async with under_load(proxy.port, streams=1, kept=1, fresh=1) as outcomes:
            proxy.versions.install(
                "2.0.0", before="import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
            )
            proxy.signal(signal.SIGUSR2)
            await eventually((tmp_path / "s/pid").exists)
            proxy.signal(signal.SIGUSR2)
            await eventually(lambda: "the new program is starting already" in proxy.events)
            await eventually(lambda: "did not serve within 60 s; this program continues" in proxy.events, 90)

        assert outcomes.failed == []
        await eventually(lambda: not lives(int((tmp_path / "s/pid").read_text())))


@pytest.mark.parametrize("workers", [1, 2])
async def test_drained_and_joined_backends_carry_over_and_so_do_later_commands_to_the_old_program(
    tmp_path: Path, workers: int
) -> None:
    answer = answers_with(http_reply())
    async with Engine(answer) as one, Engine(answer) as other, Engine(answer) as third:
        settings = usual(one, workers, ADMIN_KEY=KEY, ANNOUNCE_KEY="key-of-the-engines", CLIENT_KEEP_ALIVE_SECONDS="20")
        settings["BACKENDS"] = f"{one.url},{other.url}"
        async with service(tmp_path / "s", **settings) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            await send(url, f"/admin/backends/{one.url}/drain", method="POST", headers=BEARER)
            added = await send(url, "/admin/backends", {"url": third.url}, method="POST", headers=BEARER)
            assert added.status in (200, 201), added.body

            async with Call(url, f"/admin/backends/{other.url}/drain", method="POST", headers=BEARER) as late:
                await proxy.upgrade()

                states = await eventually(lambda: states_of(url, expected=3))
                assert states == {one.url: True, other.url: False, third.url: False}
                late.send()  # to the old program, whose connection was idle
                assert await late.head() == 200
            await eventually(lambda: is_drained(url, other.url, replies=6 * workers))
            used = {(await send(url, "/v1/chat/completions", chat())).headers["x-backend"] for _ in range(4 * workers)}
            assert used == {third.url}


async def states_of(url: str, expected: int) -> dict[str, bool] | None:
    listed = (await send(url, "/admin/backends", headers=BEARER)).json["backends"]
    return {one["url"]: one["draining"] for one in listed} if len(listed) == expected else None


async def is_drained(url: str, backend: str, replies: int) -> bool:
    return all([(await states_of(url, 3) or {}).get(backend) for _ in range(replies)])


async def test_a_stream_ends_on_the_old_program_although_systemd_stops_all_processes(tmp_path: Path) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine)) as proxy:
        old = proxy.main_pid
        async with Call(f"http://127.0.0.1:{proxy.port}", "/v1/chat/completions", chat(stream=True)) as call:
            call.send()
            assert await call.head() == 200
            await proxy.upgrade()
            for pid in (old, old, proxy.main_pid):  # the second one would stop a program that is not handed over
                os.kill(pid, signal.SIGTERM)
            assert (await call.reply()).complete
        await eventually(lambda: not lives(old))
        assert "ending already, after requests in progress" in proxy.events


async def test_an_idle_connection_stays_with_the_old_program_until_its_next_reply(tmp_path: Path) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine)) as proxy:
        old = proxy.main_pid
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        for expected in (b"", b"connection: close"):
            writer.write(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert expected in head.lower()
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            if not expected:
                await proxy.upgrade()
                await asyncio.sleep(2)
                assert lives(old)
        assert await reader.read() == b""
        writer.close()
        await eventually(lambda: not lives(old))


async def test_the_number_of_workers_may_change(tmp_path: Path) -> None:
    async with Engine(answers_slowly()) as engine:
        async with service(tmp_path / "s", **usual(engine, 1)) as proxy:
            async with under_load(proxy.port) as outcomes:
                for at, workers in enumerate((4, 2, 1, 3)):
                    proxy.versions.install(f"2.0.{at}", before=f"import os; os.environ['WORKERS'] = '{workers}'")
                    pid = await proxy.upgrade()
                    await asyncio.sleep(2)
                    assert children(pid) == (workers if workers > 1 else 0)
            assert outcomes.failed == []


def children(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def test_a_stop_during_an_upgrade_ends_both_programs(tmp_path: Path) -> None:
    async with Engine(answers_slowly()) as engine, service(tmp_path / "s", **usual(engine)) as proxy:
        proxy.versions.install(
            "2.0.0", before="import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
        )
        proxy.signal(signal.SIGUSR2)
        await eventually(lambda: (tmp_path / "s/pid").exists() and (tmp_path / "s/pid").read_text())
        proxy.signal(signal.SIGTERM)
        await eventually(lambda: "given up, because this program stops" in proxy.events)
        await eventually(lambda: not lives(int((tmp_path / "s/pid").read_text())))
        assert proxy.notify.has_heard(STOPPING="1", EXTEND_TIMEOUT_USEC="365000000") or proxy.notify.has_heard(
            STOPPING="1", EXTEND_TIMEOUT_USEC="360000000"
        )
