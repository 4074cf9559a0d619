from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.dispatch.retry import NextAttempt, RetryBudget, is_repeatable, next_attempt
from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    InvalidReply,
    RequestMoved,
)

UNREACHABLE = BackendUnreachable("")
BROKE = BackendBroke("")
STALE = BackendBroke("", crossed_request=True)
MOVED = RequestMoved("")
DECLINED = BackendDeclined(503)
CHAT = ("POST", "/v1/chat/completions")
STORED = ("POST", "/v1/responses")
OTHER, SAME, NONE = NextAttempt.OTHER_BACKEND, NextAttempt.SAME_ON_FRESH_CONNECTION, NextAttempt.NONE


@pytest.mark.parametrize(
    ("error", "request_line", "begun", "losses", "expected"),
    [
        pytest.param(UNREACHABLE, CHAT, False, 0, OTHER, id="nothing was sent"),
        pytest.param(UNREACHABLE, STORED, False, 0, OTHER, id="nothing was sent, any path"),
        pytest.param(UNREACHABLE, CHAT, False, 7, OTHER, id="nothing was sent, any number of times"),
        pytest.param(BROKE, CHAT, False, 0, OTHER, id="died with the request"),
        pytest.param(BROKE, CHAT, False, 1, NONE, id="a prompt that kills engines kills two at most"),
        pytest.param(BROKE, STORED, False, 0, NONE, id="may have been stored"),
        pytest.param(BROKE, ("POST", "/v1/files"), False, 0, NONE, id="unknown POST"),
        pytest.param(BROKE, ("GET", "/anything"), False, 0, OTHER, id="GET is idempotent"),
        pytest.param(STALE, CHAT, False, 0, SAME, id="idle connection had gone"),
        pytest.param(STALE, CHAT, False, 1, SAME, id="idle connection had gone, second backend"),
        pytest.param(STALE, STORED, False, 0, NONE, id="idle connection had gone, may have been stored"),
        pytest.param(MOVED, CHAT, False, 0, OTHER, id="taken back"),
        pytest.param(MOVED, CHAT, False, 1, NONE, id="taken back for the second time"),
        pytest.param(MOVED, STORED, False, 0, NONE, id="taken back, may have been stored"),
        pytest.param(DECLINED, CHAT, False, 0, OTHER, id="declined"),
        pytest.param(DECLINED, CHAT, False, 1, NONE, id="declined by a second one"),
        pytest.param(DECLINED, STORED, False, 0, NONE, id="declined, not repeatable"),
        pytest.param(UNREACHABLE, CHAT, True, 0, NONE, id="nothing was sent, but we have begun to answer"),
        pytest.param(BROKE, CHAT, True, 0, NONE, id="reply begun"),
        pytest.param(STALE, CHAT, True, 0, NONE, id="reply begun on a reused connection"),
        pytest.param(MOVED, CHAT, True, 0, NONE, id="taken back, reply begun"),
        pytest.param(DECLINED, CHAT, True, 0, NONE, id="declined, reply begun"),
        pytest.param(BackendTimeout(""), CHAT, False, 0, OTHER, id="no answer in time"),
        pytest.param(BackendTimeout(""), CHAT, False, 1, NONE, id="no answer in time, second backend"),
        pytest.param(BackendTimeout(""), STORED, False, 0, NONE, id="no answer in time, may have been stored"),
        pytest.param(BackendTimeout(""), CHAT, True, 0, NONE, id="no answer in time, reply begun"),
        pytest.param(InvalidReply(""), CHAT, False, 0, NONE, id="not HTTP"),
    ],
)
def test_next_attempt_depends_on_failure_and_request(
    error: BackendError, request_line: tuple[str, str], begun: bool, losses: int, expected: NextAttempt
) -> None:
    method, path = request_line
    assert next_attempt(error, method=method, path=path, reply_begun=begun, losses=losses) is expected


@pytest.mark.parametrize(("connect_timeouts", "expected"), [(0, OTHER), (1, OTHER), (2, OTHER), (3, NONE), (4, NONE)])
def test_request_is_given_up_after_three_connect_timeouts(connect_timeouts: int, expected: NextAttempt) -> None:
    method, path = CHAT
    assert (
        next_attempt(
            UNREACHABLE, method=method, path=path, reply_begun=False, losses=0, connect_timeouts=connect_timeouts
        )
        is expected
    )


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/completion", True),
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/count_tokens", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/rerank", True),
        ("POST", "/tokenize", True),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/files", False),
        ("POST", "/v1/batches", False),
        ("POST", "/v1/fine_tuning/jobs", False),
        ("POST", "/v2/rerank", True),
        ("POST", "/v2/embed", True),
        ("POST", "/v1/audio/transcriptions", True),
        ("POST", "/v1/audio/translations", True),
        ("POST", "/v1/audio/speech", True),
        ("POST", "/audio/transcriptions", True),
        ("POST", "/v1/images/generations", True),
        ("POST", "/v1/images/edits", True),
        ("POST", "/v1/moderations", True),
        ("POST", "/v1/chat/completions/input_tokens", True),
        ("POST", "/v1/responses/input_tokens", True),
        ("POST", "/api/chat", True),
        ("POST", "/api/generate", True),
        ("POST", "/api/embed", True),
        ("POST", "/api/embeddings", True),
        ("POST", "/embed", True),
        ("POST", "/api/v1/generate", True),
        ("POST", "/api/extra/generate/stream", True),
        ("POST", "/api/v0/chat/completions", True),
        ("POST", "/v1/token/encode", True),
        ("POST", "/api/v1/chat", False),  # stores the conversation
        ("POST", "/api/pull", False),
        ("POST", "/api/create", False),
        ("DELETE", "/api/delete", False),
        ("POST", "/v1/audio/voices", False),  # stores a voice
        ("POST", "/v1/videos", False),  # starts a job
        ("POST", "/v1/chat/completions/", False),
        ("POST", "/v2/chat/completions", False),
        ("GET", "/v1/files", True),
        ("HEAD", "/any", True),
        ("OPTIONS", "/any", True),
        ("PUT", "/any", False),
        ("DELETE", "/v1/files/1", False),
        ("get", "/any", False),
    ],
)
def test_only_listed_paths_and_reading_methods_are_repeatable(method: str, path: str, expected: bool) -> None:
    assert is_repeatable(method, path) is expected


class Clock:
    def __init__(self) -> None:
        self.now = 50_000.0

    def __call__(self) -> float:
        return self.now


def test_three_requests_may_always_be_repeated() -> None:
    budget = RetryBudget(Clock())
    assert [budget.take(in_flight=1) for _ in range(4)] == [True, True, True, False]


def test_at_most_a_fifth_of_all_requests_is_repeated() -> None:
    budget = RetryBudget(Clock())
    for _ in range(3):
        assert budget.take(in_flight=1)
        budget.release()
    assert not budget.take(in_flight=1)


def test_a_fifth_of_the_requests_in_flight_may_be_repeated_at_a_time() -> None:
    budget = RetryBudget(Clock())
    assert budget.take(in_flight=100)
    budget.requests += 10_000
    assert sum(budget.take(in_flight=100) for _ in range(100)) == 19
    budget.release()
    assert [budget.take(in_flight=100) for _ in range(2)] == [True, False]


def test_old_repeats_stop_counting() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(3):
        budget.take(in_flight=1)
        budget.release()
    clock.now += 10_000
    assert [budget.take(in_flight=1) for _ in range(4)] == [True, True, True, False]


def test_quiet_time_saves_up_no_repeats() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    budget.take(in_flight=1)
    budget.requests += 1_000_000
    clock.now += 1000
    assert sum(budget.take(in_flight=10_000) for _ in range(100)) == 3


@pytest.mark.parametrize("requests_a_second", [1, 20, 1000])
def test_fleet_that_always_declines_gets_a_fifth_more_requests_and_a_few(requests_a_second: int) -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    seconds, repeated = 200, 0
    for _ in range(seconds):
        for _ in range(requests_a_second):
            clock.now += 1 / requests_a_second
            budget.requests += 1
            if budget.take(in_flight=requests_a_second):
                repeated += 1
                budget.release()
    windows = seconds / 10
    assert repeated <= 0.2 * requests_a_second * seconds + 3 * (windows + 1)
    assert repeated >= 0.15 * requests_a_second * seconds


@given(st.lists(st.sampled_from(["request", "take", "give back", "wait"]), max_size=300), st.integers(0, 9))
def test_concurrent_repeats_never_exceed_a_fifth_or_three(steps: list[str], seed: int) -> None:
    clock, draw = Clock(), random.Random(seed)
    budget = RetryBudget(clock)
    under_way = 0
    for step in steps:
        if step == "request":
            budget.requests += draw.randrange(100)
        elif step == "wait":
            clock.now += draw.uniform(0, 30)
        elif step == "take":
            in_flight = draw.randrange(50)
            if budget.take(in_flight):
                under_way += 1
                assert under_way <= max(3, 0.2 * in_flight + 1)
        elif under_way:
            under_way -= 1
            budget.release()
