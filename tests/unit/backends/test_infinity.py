"""Where Infinity's models are listed. What its replies mean is in ``recorded/infinity``."""

from __future__ import annotations

from inference_engine_proxy_server.backends.base import Reply, Thresholds
from inference_engine_proxy_server.backends.infinity import InfinityBackend
from recorded import answering, recorded

HEALTH = recorded("infinity", "health")
LISTED = recorded("infinity", "v1-models")
MISSING = recorded("infinity", "err-404")


def lists_asked(asked: list[str]) -> list[str]:
    """The lists that were asked for since the last call."""
    paths = [path for path in asked if path != "/health"]
    asked.clear()
    return paths


async def test_a_list_that_is_not_there_is_asked_for_once() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {"/health": HEALTH, "/v1/models": MISSING, "/models": LISTED}
    backend = InfinityBackend("http://b", answering(answers, asked), Thresholds(6, 3))
    await backend.fetch_state()
    assert lists_asked(asked) == ["/v1/models", "/models"]
    assert (await backend.fetch_state()).models
    assert lists_asked(asked) == ["/models"]


async def test_after_a_restart_with_another_prefix_the_list_is_found_again() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {"/health": HEALTH, "/v1/models": MISSING, "/models": LISTED}
    backend = InfinityBackend("http://b", answering(answers, asked), Thresholds(6, 3))
    await backend.fetch_state()
    answers |= {"/v1/models": LISTED, "/models": MISSING}
    assert (await backend.fetch_state()).models is None
    assert (await backend.fetch_state()).models
    lists_asked(asked)
    await backend.fetch_state()
    assert lists_asked(asked) == ["/v1/models"]
