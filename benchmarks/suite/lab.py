"""The test bench: engines, running targets, and loads applied one after the other."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from load.generator import Engines, Generator, Load, Report
from proxies.process import ProxyProcess, running
from proxies.proxy import Proxy, Site, free_port
from suite.targets import Target

__all__ = ["Lab", "memory_bytes", "opened_lab"]


@dataclass(slots=True)
class _Shared:
    """A target that keeps running for a whole run, idle while others are measured."""

    process: ProxyProcess
    stack: contextlib.ExitStack


class Lab:
    """Runs loads on targets.

    Attributes:
        cores: the first core is for the targets, the second for the load.
        pace: factor for the duration of all loads; below 1 only to try out the benchmark, not for real figures.
    """

    def __init__(self, generator: Generator, engines: Engines, cores: list[int], pace: float) -> None:
        self.generator = generator
        self.cores = cores
        self.pace = pace
        self._engines = engines
        self._shared: dict[str, _Shared] = {}

    def load_shared(self, target: Target, load: Load) -> Report:
        """Run one load on a shared target in front of two engines, and wait until the engines are idle again."""
        if target.proxy is None:
            return self.run(load, self._engines, None)
        process = self._process(target.name, target.proxy)
        try:
            report = self.run(load, self._engines, process)
            self._engines.wait_until_quiet()
        except RuntimeError:
            self._shared.pop(target.name).stack.close()  # the next load starts a new process
            raise
        return report

    @contextlib.contextmanager
    def fresh(self, proxy: Proxy, engines: Engines, cores: list[int] | None = None) -> Iterator[ProxyProcess]:
        """A new process of a target, on ``cores`` or else on the first core."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            site = Site(Path(folder), free_port(), engines.ports)
            with running(proxy, site, cores or self.cores[:1]) as process:
                yield process

    def run(
        self, load: Load, engines: Engines, process: ProxyProcess | None, generator: Generator | None = None
    ) -> Report:
        """Run one load, at this lab's pace, on a proxy, or on the engines if ``process`` is ``None``."""
        timed = replace(load, seconds=load.seconds * self.pace)
        port, pids = (process.port, process.pids) if process else (engines.ports[0], ())
        return (generator or self.generator).run(timed, port, pids)

    def close(self) -> None:
        for shared in self._shared.values():
            shared.stack.close()

    def _process(self, name: str, proxy: Proxy) -> ProxyProcess:
        shared = self._shared.get(name)
        if shared is not None and shared.process.has_ended:
            self._shared.pop(name).stack.close()
            raise RuntimeError(f"the proxy ended by itself: {shared.process.log_end}")
        if shared is None:
            stack = contextlib.ExitStack()
            process = stack.enter_context(self.fresh(proxy, self._engines))
            time.sleep(1)  # until the proxy has polled both engines
            shared = self._shared[name] = _Shared(process, stack)
        return shared.process


@contextlib.contextmanager
def opened_lab(programs: Path, cores: list[int], pace: float) -> Iterator[Lab]:
    """A lab with two engines on the load's core; all its processes end with it."""
    generator = Generator(programs, (cores[1],))
    with generator.engines() as engines:
        lab = Lab(generator, engines, cores, pace)
        try:
            yield lab
        finally:
            lab.close()


def memory_bytes(pids: tuple[int, ...]) -> int:
    """Total resident memory of the processes."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
