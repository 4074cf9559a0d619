"""A real llama.cpp server for tests, in its own process.

::

    with LlamaServer(model, "--slots", "2") as server:
        server.url, server.metrics(), server.freeze(), server.thaw(), server.kill()

The child runs ``llama_program.py``. It ends with its standard input, so it cannot outlive a test run, however that
ends.
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from support.ports import free_port

__all__ = ["LlamaServer"]

_READY_DEADLINE_SECONDS = 60.0
_PROGRAM = Path(__file__).with_name("llama_program.py")


class LlamaServer:
    """A server, ready when the constructor returns (but see ``wait``).

    Args:
        model: a GGUF file, such as ``tiny_gguf.write_tiny_gguf`` writes.
        options: command line options of ``llama_program.py``.
        port: ``None`` for a free port.
        host: its address.
        wait: ``False`` to return at once, while the server refuses connections and then answers 503 during loading;
            ``wait_until_ready`` waits. A large model makes this time observable.

    Raises:
        RuntimeError: it did not start; the message has its log.
    """

    def __init__(
        self, model: Path, *options: str, port: int | None = None, host: str = "127.0.0.1", wait: bool = True
    ) -> None:
        self.host, self.port = host, port or free_port()
        self.url = f"http://{host}:{self.port}"
        self._log = tempfile.NamedTemporaryFile(prefix="llama-server-", suffix=".log")  # noqa: SIM115 - see `_close`
        self._process = subprocess.Popen(
            [sys.executable, _PROGRAM, str(model), str(self.port), "--host", host, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches only the tests, which stop their servers
        )
        if wait:
            self.wait_until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """The output of the server so far."""
        return Path(self._log.name).read_text(errors="replace")

    def wait_until_ready(self, deadline_seconds: float = _READY_DEADLINE_SECONDS) -> None:
        """Wait until the model is loaded and requests are answered.

        Raises:
            RuntimeError: the server ended, or was not ready in time; the message has its log.
        """
        assert self._process.stdout is not None
        # It reports readiness itself. Polling /health could reach another process that took the port.
        if not select.select([self._process.stdout], [], [], deadline_seconds)[0]:
            log = self.log
            self.stop()
            raise RuntimeError(f"llama.cpp was not ready within {deadline_seconds} s: {log}")
        if not self._process.stdout.readline():
            log = self.log
            self.stop()
            raise RuntimeError(f"llama.cpp did not start: {log}")

    def status(self, path: str = "/health") -> int | None:
        """Status of ``GET path`` on a new connection; ``None`` if no server listens."""
        try:
            return self._get(path)[0]
        except ConnectionError:
            return None

    def metrics(self) -> dict[str, float]:
        """The current values of its ``/metrics``: ``{"llamacpp:requests_processing": 1.0, ...}``.

        Raises:
            RuntimeError: the status is not 200, for example after a start with ``--no-metrics``.
        """
        status, body = self._get("/metrics")
        if status != http.HTTPStatus.OK:
            raise RuntimeError(f"/metrics answered {status}")
        samples = (line.rsplit(" ", 1) for line in body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def freeze(self) -> None:
        """Freeze it: the system still accepts connections, but nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        # The signal is asynchronous: threads on other CPUs may still answer until all have stopped.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Thaw a frozen server."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it like a crash, frozen or not; the system resets open connections."""
        self._process.kill()
        self._close()

    def stop(self) -> None:
        """End it, even if it is frozen or has ended already."""
        self._process.kill()  # it has nothing to save, and its orderly exit waits for its streams
        self._close()

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()
