"""Disturbs the backends with random kinds of faults, up to three at a time, determined by a seed."""

from __future__ import annotations

import asyncio
import http.client
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from soak.engines import EngineProcess, ScriptedProcess, write_fleet_file
from soak.timeline import Timeline

__all__ = ["FaultDriver"]

_MOST_AT_A_TIME = 3
_PAUSE_SECONDS = 1.5  # mean time between the starts of two faults
_ADMIN_SECONDS = 10.0

_Fault = Callable[[EngineProcess, float], Awaitable[None]]


class FaultDriver:
    """Causes the faults.

    Args:
        engines: all engines; the last one is the spare.
        fleet_file: lists the engines that the proxy should use.
        timeline: records every fault.
        port, admin_key: of the proxy.
        reload: signals to the proxy that the file has changed.
        seed: determines the sequence of faults.

    Attributes:
        done: number of faults of each kind.
        unanswered: operators' commands that the proxy did not carry out.
    """

    def __init__(
        self,
        engines: Sequence[EngineProcess],
        fleet_file: Path,
        timeline: Timeline,
        port: int,
        admin_key: str,
        reload: Callable[[], None],
        seed: int,
    ) -> None:
        self._engines = engines
        self._spare = engines[-1]
        self._fleet_file = fleet_file
        self._timeline = timeline
        self._port = port
        self._admin_key = admin_key
        self._reload = reload
        self._draw = random.Random(f"{seed} faults")
        self._absent = {self._spare}
        self.done: Counter[str] = Counter()
        self.unanswered: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set; all faults have ended when this returns."""
        with self._timeline.disturbed(self._spare.url, "absent"):
            async with asyncio.TaskGroup() as group:
                tasks: set[asyncio.Task[None]] = set()
                while not await _is_set(stop, self._draw.expovariate(1 / _PAUSE_SECONDS)):
                    tasks = {task for task in tasks if not task.done()}
                    calm = [one for one in self._engines if not self._timeline.is_disturbed(one.url)]
                    if self._draw.random() < 0.02:
                        tasks |= {group.create_task(self._outage(engine, stop)) for engine in calm}
                    elif len(tasks) < _MOST_AT_A_TIME:
                        tasks.add(group.create_task(self._next_fault(calm, stop)))

    async def _next_fault(self, calm: Sequence[EngineProcess], stop: asyncio.Event) -> None:
        draw = self._draw
        if draw.random() < 0.08:
            await self._bring_spare(stop, draw.uniform(5, 15))
        elif draw.random() < 0.05:
            await self._break_fleet_file(stop)
        elif calm:
            engine = draw.choice(calm)
            kinds = ["kill", "freeze", "drain", "move", "absent"]
            if isinstance(engine, ScriptedProcess):
                kinds += ["503", "500", "429", "reset", "slow", "malformed", "refuse", "health hangs", "no metrics"]
            await self._disturb(engine, draw.choice(kinds), draw.uniform(1, 9), stop)

    async def _disturb(self, engine: EngineProcess, kind: str, seconds: float, stop: asyncio.Event) -> None:
        self.done[kind] += 1
        with self._timeline.disturbed(engine.url, kind):
            if kind == "kill":
                engine.kill()
                await _is_set(stop, seconds / 3)
                await engine.start()
            elif kind == "freeze":
                engine.freeze()
                await _is_set(stop, 2 * seconds)
                engine.thaw()
            elif kind in ("drain", "move"):
                moves = "?move=1" if kind == "move" else ""
                await self._send_admin_command(f"/admin/backends/{engine.name}/drain{moves}")
                await _is_set(stop, seconds)
                await self._send_admin_command(f"/admin/backends/{engine.name}/undrain")
            elif kind == "absent":
                await self._remove_from_fleet(engine, stop, seconds)
            elif isinstance(engine, ScriptedProcess):
                await self._misbehave(engine, kind, seconds, stop)

    async def _misbehave(self, engine: ScriptedProcess, kind: str, seconds: float, stop: asyncio.Event) -> None:
        orders: dict[str, tuple[object, object]] = {
            "refuse": (False, True),
            "health hangs": ("hangs", "well"),
            "no metrics": (False, True),
        }
        name = {"refuse": "listens", "health hangs": "health", "no metrics": "metrics"}.get(kind, "answers")
        bad, good = orders.get(kind, (kind, "well"))
        await engine.order(**{name: bad})
        await _is_set(stop, seconds)
        await engine.order(**{name: good})

    async def _outage(self, engine: EngineProcess, stop: asyncio.Event) -> None:
        """Disturb all undisturbed backends at once, so that no backend may be left."""
        await self._disturb(engine, "refuse" if isinstance(engine, ScriptedProcess) else "kill", 3.0, stop)

    async def _remove_from_fleet(self, engine: EngineProcess, stop: asyncio.Event, seconds: float) -> None:
        if len(self._absent) > 2:
            return
        self._absent.add(engine)
        self._write_fleet()
        await _is_set(stop, seconds)
        self._absent.discard(engine)
        self._write_fleet()

    async def _bring_spare(self, stop: asyncio.Event, seconds: float) -> None:
        if self._spare not in self._absent:
            return
        self.done["one more backend"] += 1
        self._absent.discard(self._spare)
        self._write_fleet()
        await _is_set(stop, seconds)
        self._absent.add(self._spare)
        self._write_fleet()

    async def _break_fleet_file(self, stop: asyncio.Event) -> None:
        self.done["unreadable fleet file"] += 1
        self._fleet_file.write_text("backends: [{url: ftp://nowhere}]\n")
        self._reload()
        await _is_set(stop, 1.5)
        self._write_fleet()

    def _write_fleet(self) -> None:
        write_fleet_file(self._fleet_file, [one for one in self._engines if one not in self._absent])
        self._reload()

    async def _send_admin_command(self, path: str) -> None:
        await asyncio.to_thread(self._post, path)

    def _post(self, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ADMIN_SECONDS)
        try:
            connection.request("POST", path, headers={"Authorization": f"Bearer {self._admin_key}"})
            reply = connection.getresponse()
            reply.read()
            if reply.status not in (200, 404):  # 404: it is not in the fleet at the moment
                self.unanswered.append(f"POST {path}: {reply.status}")
        except OSError as error:
            self.unanswered.append(f"POST {path}: {error!r}")
        finally:
            connection.close()


async def _is_set(stop: asyncio.Event, seconds: float) -> bool:
    """Wait for ``seconds``, or until the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True
