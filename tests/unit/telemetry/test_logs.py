from __future__ import annotations

import json
import re
import subprocess
import sys


def _events(log_format: str, level: str = "info", worker: int | None = None) -> list[str]:
    """The standard error of a process that logs one event of each level, and one with a traceback."""
    program = f"""
import logging
from inference_engine_proxy_server.telemetry.logs import configure_logging
configure_logging({level!r}, {log_format!r}, {worker!r})
logger = logging.getLogger("some.where")
logger.debug("a %s", "detail")
logger.info("it %s", "works")
logging.getLogger("uvicorn.error").info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it broke")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_events_are_lines_of_text_on_standard_error() -> None:
    first, second, *traceback = _events("text")

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info    it works", first)
    assert second.endswith("Z error   it broke")
    assert (traceback[0], traceback[-1]) == (
        "Traceback (most recent call last):",
        "ZeroDivisionError: division by zero",
    )


def test_each_event_is_one_json_object() -> None:
    first, second = map(json.loads, _events("json"))

    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "logger": "some.where", "message": "it works"}
    assert second["message"] == "it broke"
    assert "ZeroDivisionError" in second["traceback"]


def test_events_below_the_level_are_not_written() -> None:
    assert len(_events("json", "debug")) == 3
    assert len(_events("json", "error")) == 1


def test_events_name_their_worker() -> None:
    assert _events("text", worker=3)[0].endswith("Z info    [worker 3] it works")
    assert json.loads(_events("json", worker=0)[0])["worker"] == 0
