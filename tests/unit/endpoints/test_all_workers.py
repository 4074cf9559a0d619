"""When a backend is safe to stop: everybody must have answered, and nobody may use it."""

from __future__ import annotations

from typing import Any

import pytest

from inference_engine_proxy_server.endpoints.all_workers import SiblingAnswers

URL = "http://a"
DRAINED: dict[str, Any] = {"backends": [URL], "draining": [URL], "requests": {}}
IN_USE: dict[str, Any] = {"backends": [URL], "draining": [], "requests": {URL: 2}}
WITHOUT: dict[str, Any] = {"backends": ["http://b"], "draining": [], "requests": {URL: 1}}


@pytest.mark.parametrize(
    ("answers", "is_drained"),
    [
        (SiblingAnswers((), ()), True),
        (SiblingAnswers((DRAINED,), ()), True),
        (SiblingAnswers((DRAINED, IN_USE), ()), False),
        (SiblingAnswers((DRAINED,), (1,)), False),
        (SiblingAnswers((), (), {"other": DRAINED, "third": WITHOUT}, ()), True),
        (SiblingAnswers((), (), {"other": IN_USE}, ()), False),
        (SiblingAnswers((), (), {"other": DRAINED}, ("third",)), False),
    ],
)
def test_a_backend_is_drained_if_nobody_gives_it_requests_and_nobody_is_silent(
    answers: SiblingAnswers, is_drained: bool
) -> None:
    assert answers.drained(URL) is is_drained


def test_silent_replicas_hold_up_no_command_but_nothing_is_safe_to_stop_then() -> None:
    answers = SiblingAnswers((), (), {"other": WITHOUT}, ("third",))
    assert answers.have_followed(URL, is_present=False)
    assert not answers.agree_on(URL, is_present=False)
    assert not SiblingAnswers((), (), {"other": DRAINED}, ()).have_followed(URL, is_present=False)
    assert SiblingAnswers((), (), {"other": WITHOUT}, ()).agree_on(URL, is_present=False)


def test_requests_of_all_replicas_count_also_on_backends_that_have_left() -> None:
    answers = SiblingAnswers((), (), {"other": IN_USE, "third": WITHOUT}, ())
    assert answers.requests_on(URL) == 3
    assert answers.by_replica(URL) == [
        {"replica": "other", "in_fleet": True, "draining": False, "requests_in_flight": 2},
        {"replica": "third", "in_fleet": False, "draining": False, "requests_in_flight": 1},
    ]
