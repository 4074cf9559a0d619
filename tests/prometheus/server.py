"""Prometheus with the configuration in monitoring/, as a process."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import yaml

from support.monitoring import MONITORING
from support.ports import free_port

__all__ = ["Prometheus", "wait_for"]

_SECONDS = 60.0
_open = build_opener(ProxyHandler({})).open


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {_SECONDS} s: {what}"
        time.sleep(0.05)


class Prometheus:
    """Scrapes ``target`` each second, and evaluates all rules each second; ready when the constructor returns.

    Args:
        folder: an empty folder for its data.
        target: host and port of the proxy.
    """

    def __init__(self, folder: Path, target: str) -> None:
        shutil.copytree(MONITORING, folder / "monitoring")
        file = folder / "monitoring" / "prometheus.yml"
        configuration = yaml.safe_load(file.read_text())
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        file.write_text(yaml.safe_dump(configuration))
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            wait_for(self._is_ready, "Prometheus is ready")
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            assert self._process.wait(_SECONDS) == 0, self._log.read_text()
        finally:
            self._process.kill()
            self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of ``expression`` now; a scalar is one sample without labels.

        Raises:
            AssertionError: Prometheus rejects it.
        """
        found = self._get("/api/v1/query", query=expression)
        result: Any = found["result"]
        return [{"metric": {}, "value": result}] if found["resultType"] == "scalar" else result

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is pending or firing."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self._get("/api/v1/alerts")["alerts"]}

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: str) -> Any:
        try:
            with _open(f"{self._url}{path}?{urlencode(parameters)}", timeout=_SECONDS) as reply:
                content = json.load(reply)
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert content["status"] == "success", content
        return content["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with _open(f"{self._url}/-/ready", timeout=_SECONDS) as reply:
                return bool(reply.status == 200)
        except (HTTPError, URLError, ConnectionError):
            return False
