"""Evidence about a backend decides its health; without a backend, and with a clock that tests advance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.health import Health, HealthRules
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.wire.backend_connections import Activity

RULES = HealthRules(evidence_seconds=6, suspect_after_seconds=60, slow_start_seconds=30)
READY = BackendState(ready=True)
BUSY = BackendState(ready=False, reason="12 requests wait there")
LOADING = BackendState(ready=False, live=False, starting=True, reason="it loads its model")
ASLEEP = BackendState(ready=False, live=False, reason="it is asleep")
IDLE = Activity()
NO_REASON = ""


class Case:
    """A tracker, and the events that it receives.

    Attributes:
        health: under test.
        now: reading of the clock.
        activity: of the backend's connections.
        draw: the next random number from 0 to below 1.
    """

    def __init__(self, *, first: BackendState | None = READY, rules: HealthRules = RULES) -> None:
        self.now = 1000.0
        self.draw = 0.0
        self.activity = IDLE
        self.health = HealthTracker(rules, self.now, lambda: self.draw)
        if first is not None:
            self.answer(first)

    def wait(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass, with an answered poll every ``step`` seconds."""
        while seconds > 0:
            self.now += min(step, seconds)
            seconds -= step
            self.answer(self.health.reported)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and review."""
        self.now += seconds
        self.look()

    def look(self) -> None:
        self.health.review(self.now, self.activity)

    def answer(self, state: BackendState = READY, asked_at: float | None = None) -> None:
        self.health.answered(state, asked_at=self.now if asked_at is None else asked_at, now=self.now)
        self.look()

    def be_silent(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.was_silent()
            self.look()

    def refuse_question(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.was_unreachable(self.now, self.activity)
            self.look()

    def fail(self, times: int = 1, *, may_suspend: bool = True) -> None:
        for _ in range(times):
            self.health.failed(self.now, "it answered 500", may_suspend=may_suspend)
            self.look()

    def lose(self, *, may_suspend: bool = True, is_refused: bool = True) -> None:
        self.health.lost_connection(self.now, "it broke a connection", is_refused=is_refused, may_suspend=may_suspend)
        self.look()

    def restart(self) -> None:
        """Break a connection, and answer the next poll at once."""
        self.lose()
        self.now += 0.01
        self.answer()

    def time_out(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.timed_out(self.now)
            self.look()

    def succeed(self, sent_at: float) -> None:
        self.health.succeeded(sent_at)
        self.look()

    def ask_for_rest(self, seconds: float) -> None:
        self.health.asks_for_rest(self.now, seconds)
        self.look()

    def state(self) -> Health:
        return self.health.state

    @property
    def suspended_seconds(self) -> float:
        """The rest of the suspension, measured by waiting for the trial."""
        assert self.health.state is Health.SUSPECT
        began = self.now
        while not self.health.on_trial:
            assert self.now - began < 100
            self.wait(0.5)
        return self.now - began


# --- lost connections


def test_backend_that_broke_a_connection_leaves_the_rotation_but_keeps_its_requests() -> None:
    case = Case()
    case.lose(is_refused=False)
    assert (case.state(), case.health.takes_requests) == (Health.DOWN, False)
    assert (case.health.is_in_question, case.health.is_stuck) == (True, False)
    case.now += 0.01
    case.answer()
    assert (case.state(), case.health.is_in_question) == (Health.UP, False)


def test_backend_that_broke_a_connection_and_does_not_answer_is_stuck() -> None:
    for question in (Case.refuse_question, Case.be_silent):
        case = Case()
        case.lose(is_refused=False)
        question(case)
        assert (case.state(), case.health.is_in_question, case.health.is_stuck) == (Health.DOWN, False, True)


def test_backend_that_refused_a_connection_is_stuck_at_once() -> None:
    case = Case()
    case.lose(is_refused=True)
    assert (case.health.is_in_question, case.health.is_stuck) == (False, True)


def test_connections_that_break_together_are_one_failure() -> None:
    case = Case()
    for _ in range(30):
        case.lose(is_refused=False)
    case.now += 0.01
    case.answer()
    assert case.state() is Health.UP


# --- reports


def test_backend_is_starting_before_its_first_answer() -> None:
    case = Case(first=None)
    case.look()
    assert (case.state(), case.health.takes_requests, case.health.reason) == (Health.STARTING, False, "not polled yet")


@pytest.mark.parametrize(
    ("reported", "state", "takes_requests"),
    [
        (READY, Health.UP, True),
        (BUSY, Health.BUSY, False),
        (LOADING, Health.STARTING, False),
        (ASLEEP, Health.DOWN, False),
    ],
    ids=["ready", "busy", "loading", "asleep"],
)
def test_reported_state_decides(reported: BackendState, state: Health, takes_requests: bool) -> None:
    case = Case(first=reported)
    assert (case.state(), case.health.takes_requests, case.health.reason) == (state, takes_requests, reported.reason)


def test_since_is_when_the_state_began() -> None:
    case = Case()
    began = case.now
    case.wait(10)
    assert case.health.since == began
    case.answer(BUSY)
    assert case.health.since == case.now


# --- silence


def test_silent_backend_is_busy_and_the_last_choice() -> None:
    case = Case()
    case.be_silent()
    assert (case.state(), case.health.takes_requests, case.health.is_last_choice) == (Health.BUSY, True, True)
    assert case.health.is_silent
    case.answer()
    assert (case.state(), case.health.is_last_choice, case.health.is_silent) == (Health.UP, False, False)


def test_backend_that_is_silent_for_too_long_is_down() -> None:
    case = Case()
    case.be_silent(2)
    case.sleep(RULES.evidence_seconds)
    assert case.state() is Health.BUSY
    case.sleep(0.1)
    assert (case.state(), case.health.takes_requests, case.health.is_stuck) == (Health.DOWN, False, True)
    case.answer()
    assert case.state() is Health.UP


def test_single_silence_never_takes_a_backend_down() -> None:
    case = Case()
    case.be_silent()
    case.sleep(1000)  # the proxy itself may have stood still
    assert case.state() is Health.BUSY


def test_silent_backend_stays_the_last_choice_while_bytes_flow() -> None:
    case = Case()
    for _ in range(100):
        case.be_silent()
        case.now += 1
        case.activity = Activity(last_byte_at=case.now, waiting_since=1000.0, has_begun=True)
        case.look()
        assert (case.state(), case.health.is_last_choice, case.health.takes_requests) == (Health.BUSY, True, True)
    case.activity = Activity(last_byte_at=case.now)
    case.sleep(RULES.evidence_seconds + 0.1)
    assert case.state() is Health.DOWN


def test_busy_backend_that_falls_silent_gets_no_request() -> None:
    case = Case(first=BUSY)
    case.be_silent()
    assert (case.state(), case.health.takes_requests) == (Health.BUSY, False)


# --- refused polls


def test_refused_poll_means_down() -> None:
    case = Case()
    case.refuse_question()
    assert (case.state(), case.health.reason, case.health.is_stuck) == (Health.DOWN, "it cannot be reached", True)


def test_three_refused_polls_mean_down_while_bytes_are_fresh() -> None:
    case = Case()
    case.activity = Activity(last_byte_at=case.now - 2.0, waiting_since=case.now - 9, has_begun=True)
    case.refuse_question(2)
    assert case.state() is Health.UP
    case.refuse_question()
    assert case.state() is Health.DOWN


def test_answer_resets_the_count_of_refused_polls() -> None:
    case = Case()
    case.activity = Activity(last_byte_at=case.now, waiting_since=case.now - 9, has_begun=True)
    case.refuse_question(2)
    case.answer()
    case.refuse_question(2)
    assert case.state() is Health.UP


def test_old_bytes_do_not_outweigh_a_refused_poll() -> None:
    case = Case()
    case.activity = Activity(last_byte_at=case.now - 2.1, waiting_since=case.now - 9, has_begun=True)
    case.refuse_question()
    assert case.state() is Health.DOWN


def test_lost_connection_means_down_until_a_later_poll_is_answered() -> None:
    case = Case()
    asked_at = case.now
    case.now += 0.5
    case.lose()
    assert (case.state(), case.health.reason) == (Health.DOWN, "it broke a connection")
    case.now += 0.1
    case.answer(asked_at=asked_at)
    assert case.state() is Health.DOWN
    case.answer()
    assert case.state() is Health.UP


def test_bytes_of_other_replies_do_not_bring_back_a_lost_backend() -> None:
    case = Case()
    case.lose()
    case.activity = Activity(last_byte_at=case.now + 1, waiting_since=case.now - 9, has_begun=True)
    case.sleep(1)
    assert case.state() is Health.DOWN


# --- failures


def test_five_failures_in_a_row_suspend() -> None:
    case = Case()
    case.fail(4)
    assert (case.state(), case.health.is_last_choice, case.health.is_doubtful) == (Health.UP, True, True)
    case.fail()
    assert (case.state(), case.health.takes_requests) == (Health.SUSPECT, False)
    assert case.health.reason == "5 requests in a row failed, the last one because it answered 500"
    assert not case.health.is_stuck  # it does answer, though with errors


def test_lost_connections_count_as_failures() -> None:
    case = Case()
    case.fail(4)
    case.restart()
    assert case.state() is Health.SUSPECT


def test_failures_do_not_suspend_if_too_few_backends_would_be_left() -> None:
    case = Case()
    case.fail(50, may_suspend=False)
    assert (case.state(), case.health.takes_requests, case.health.is_last_choice) == (Health.UP, True, True)


def test_success_of_a_later_request_resets_the_count_of_failures() -> None:
    case = Case()
    case.fail(4)
    case.now += 1
    case.succeed(sent_at=case.now)
    assert (case.health.is_doubtful, case.health.is_last_choice) == (False, False)
    case.fail(4)
    assert case.state() is Health.UP


def test_success_of_an_earlier_request_does_not_count() -> None:
    case = Case()
    case.fail(4)
    case.now += 1
    case.succeed(sent_at=case.now - 2)
    assert case.health.is_doubtful
    case.fail()
    assert case.state() is Health.SUSPECT


def test_failed_backend_is_the_last_choice_until_it_answers_a_poll() -> None:
    case = Case()
    asked_at = case.now
    case.now += 0.1
    case.fail()
    case.answer(asked_at=asked_at)
    assert case.health.is_last_choice
    case.now += 0.1
    case.answer()
    assert (case.health.is_last_choice, case.health.is_doubtful) == (False, True)


def test_failures_during_a_start_do_not_count() -> None:
    case = Case()
    case.fail(5)
    assert case.state() is Health.SUSPECT
    case.now += 1
    case.answer(LOADING)
    assert case.state() is Health.STARTING
    case.now += 1
    case.answer()
    assert (case.state(), case.health.is_doubtful) == (Health.UP, False)
    case.fail(4)
    assert case.state() is Health.UP


# --- suspension and trial


def test_each_fall_lengthens_the_suspension_by_five_seconds_up_to_a_minute() -> None:
    case = Case()
    case.fail(5)
    lengths = [case.suspended_seconds]
    for _ in range(13):
        case.fail()  # on trial
        lengths.append(case.suspended_seconds)
    assert lengths == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 60, 60]


def test_suspension_varies_by_a_fifth() -> None:
    case = Case()
    case.draw = 0.999
    case.fail(5)
    case.sleep(5.9)
    assert not case.health.on_trial
    case.sleep(0.1)
    assert case.health.on_trial


def test_failures_of_running_requests_do_not_lengthen_a_suspension() -> None:
    case = Case()
    case.fail(40)
    assert case.suspended_seconds == 5


def test_timeouts_that_come_together_do_not_lengthen_a_suspension() -> None:
    case = Case()
    case.time_out(40)
    assert case.suspended_seconds == 5


def test_successful_trial_ends_a_suspension_with_a_slow_start() -> None:
    case = Case()
    case.fail(5)
    case.wait(5)
    assert (case.state(), case.health.on_trial, case.health.takes_requests) == (Health.SUSPECT, True, True)
    case.now += 1
    case.succeed(sent_at=case.now - 0.5)
    assert (case.state(), case.health.on_trial, case.health.takes_requests) == (Health.UP, False, True)
    assert case.health.share(case.now) == 0.1
    assert case.health.share(case.now + 15) == 0.5
    assert case.health.share(case.now + 31) == 1


def test_failed_trial_lengthens_the_suspension_however_few_backends_are_left() -> None:
    case = Case()
    case.fail(5)
    case.wait(5)
    case.fail(may_suspend=False)
    assert (case.state(), case.health.takes_requests) == (Health.SUSPECT, False)
    assert case.suspended_seconds == 10


def test_trial_that_loses_its_connection_is_one_fall() -> None:
    case = Case()
    case.fail(5)
    case.wait(5)
    case.lose()
    assert case.state() is Health.DOWN
    case.now += 0.001
    case.answer()
    assert case.suspended_seconds == pytest.approx(10, abs=0.5)
    case.lose()
    case.now += 0.001
    case.answer()
    assert case.suspended_seconds == pytest.approx(15, abs=0.5)  # flapping does not shorten it


def test_trial_that_times_out_lengthens_the_suspension() -> None:
    case = Case()
    case.fail(5)
    case.wait(5)
    case.time_out()
    assert case.suspended_seconds == 10


def test_suspended_backend_that_goes_down_gets_no_trial() -> None:
    case = Case()
    case.fail(5)
    case.refuse_question()
    case.sleep(100)
    assert (case.state(), case.health.on_trial, case.health.takes_requests) == (Health.DOWN, False, False)


def test_answered_polls_do_not_end_a_suspension_for_failures() -> None:
    case = Case()
    case.fail(5)
    case.wait(1000)
    assert (case.state(), case.health.on_trial) == (Health.SUSPECT, True)


def test_success_of_a_request_from_before_the_suspension_does_not_end_it() -> None:
    case = Case()
    case.fail(5)
    case.now += 1
    case.succeed(sent_at=case.now - 1)
    assert case.state() is Health.SUSPECT


def test_reply_that_has_begun_ends_a_suspension_if_its_request_was_sent_later() -> None:
    case = Case()
    case.fail(5)
    suspended_at = case.now
    case.activity = Activity(waiting_since=suspended_at, answered_sent_at=suspended_at, has_begun=True)
    case.wait(6)
    assert case.state() is Health.SUSPECT
    case.activity = Activity(waiting_since=suspended_at, answered_sent_at=suspended_at + 5.5, has_begun=True)
    case.look()
    assert case.state() is Health.UP


# --- work that stands still


def working(since: float, *, last_byte_at: float = 0.0, has_begun: bool = False) -> Activity:
    return Activity(last_byte_at=last_byte_at, waiting_since=since, has_begun=has_begun)


def progress(value: float) -> BackendState:
    return BackendState(ready=True, progress=value)


def test_work_that_stands_still_for_a_minute_is_stuck() -> None:
    case = Case(first=progress(7))
    case.activity = working(case.now)
    case.wait(59)
    assert case.state() is Health.UP
    case.wait(1)
    assert (case.state(), case.health.is_stuck, case.health.takes_requests) == (Health.SUSPECT, True, False)
    assert case.health.reason == "nothing has moved there for 60 s"


def test_reply_that_stands_still_is_stuck_even_without_a_progress_counter() -> None:
    case = Case()
    case.activity = working(case.now, last_byte_at=case.now + 20, has_begun=True)
    case.wait(79)
    assert case.state() is Health.UP
    case.wait(1)
    assert (case.state(), case.health.is_stuck) == (Health.SUSPECT, True)


def test_long_wait_for_the_first_byte_proves_nothing_without_a_progress_counter() -> None:
    case = Case()
    case.activity = working(case.now)
    case.wait(600)
    assert case.state() is Health.UP


def test_progress_counter_that_moves_proves_work() -> None:
    case = Case(first=progress(0))
    case.activity = working(case.now)
    for steps in range(20):
        case.wait(30)
        case.answer(progress(steps))
    assert case.state() is Health.UP


def test_work_is_as_old_as_its_oldest_request() -> None:
    case = Case(first=progress(0))
    case.wait(600)
    case.activity = working(case.now)
    case.wait(59)
    assert case.state() is Health.UP


def test_backend_without_work_is_never_stuck() -> None:
    case = Case(first=progress(0))
    case.wait(600)
    assert case.state() is Health.UP


@pytest.mark.parametrize("by", ["a counter that moves", "a byte"])
def test_backend_that_stood_still_comes_back_when_work_moves(by: str) -> None:
    case = Case(first=progress(0))
    case.activity = working(case.now)
    case.wait(60)
    assert case.state() is Health.SUSPECT
    case.now += 1
    if by == "a byte":
        case.activity = working(1000.0, last_byte_at=case.now, has_begun=True)
        case.look()
    else:
        case.answer(progress(1))
    assert (case.state(), case.health.is_stuck) == (Health.UP, False)
    assert case.health.share(case.now) == 0.1


def test_flowing_bytes_do_not_end_a_suspension_for_failures() -> None:
    case = Case(first=progress(0))
    case.fail(5)
    case.now += 1
    case.activity = working(900.0, last_byte_at=case.now, has_begun=True)
    case.answer(progress(1))
    assert case.state() is Health.SUSPECT


def test_two_timeouts_in_a_row_suspend() -> None:
    case = Case()
    case.time_out()
    assert (case.state(), case.health.is_last_choice, case.health.is_doubtful) == (Health.UP, True, True)
    case.time_out()
    assert (case.state(), case.health.is_stuck) == (Health.SUSPECT, True)
    assert case.health.reason == "it leaves requests without an answer"


def test_success_resets_the_count_of_timeouts() -> None:
    case = Case()
    case.time_out()
    case.now += 1
    case.succeed(sent_at=case.now)
    case.time_out()
    assert case.state() is Health.UP


# --- flapping


def test_third_restart_is_flapping() -> None:
    case = Case()
    for _ in range(2):
        case.restart()
        assert case.state() is Health.UP
        case.succeed(sent_at=case.now)
    case.restart()
    assert (case.state(), case.health.reason) == (Health.SUSPECT, "it keeps failing")
    assert case.suspended_seconds == 5


def test_each_fall_of_a_flapping_backend_lengthens_its_suspension() -> None:
    case = Case()
    lengths = []
    for fall in range(5):
        case.restart()
        if fall >= 2:
            lengths.append(case.suspended_seconds)
        case.now += 0.1
        case.succeed(sent_at=case.now)
        assert case.state() is Health.UP
    assert lengths == [5, 10, 15]


@pytest.mark.parametrize("busy_meanwhile", [False, True])
def test_falls_are_forgiven_after_a_minute_of_good_health(busy_meanwhile: bool) -> None:
    case = Case()
    for _ in range(20):
        case.restart()
        assert case.state() is Health.UP
        case.succeed(sent_at=case.now)
        for _ in range(6):
            case.wait(10)
            if busy_meanwhile:
                case.answer(BUSY)
                case.answer(READY)


def test_falls_are_not_forgiven_within_a_minute() -> None:
    case = Case()
    for _ in range(2):
        case.restart()
        case.succeed(sent_at=case.now)
        case.wait(59)
    case.restart()
    assert case.state() is Health.SUSPECT


def test_backend_that_never_worked_does_not_flap() -> None:
    case = Case(first=None)
    for _ in range(10):
        case.refuse_question()
        assert case.state() is Health.DOWN
        case.now += 1
        case.answer(LOADING)
    case.answer()
    assert (case.state(), case.health.share(case.now)) == (Health.UP, 1)


# --- pauses


def test_backend_that_asks_for_a_pause_gets_it() -> None:
    case = Case()
    case.ask_for_rest(10)
    assert (case.state(), case.health.takes_requests, case.health.reason) == (
        Health.BUSY,
        False,
        "it asked for a pause",
    )
    case.wait(9.9)
    assert case.state() is Health.BUSY
    case.wait(0.1)
    assert (case.state(), case.health.share(case.now)) == (Health.UP, 1)  # a pause is no failure


def test_pause_lasts_at_most_half_a_minute() -> None:
    case = Case()
    case.ask_for_rest(86400)
    case.wait(29)
    assert case.state() is Health.BUSY
    case.wait(1)
    assert case.state() is Health.UP


def test_silence_does_not_end_a_pause() -> None:
    case = Case()
    case.ask_for_rest(10)
    case.be_silent()
    assert not case.health.takes_requests


def test_trial_waits_for_the_end_of_a_pause() -> None:
    case = Case()
    case.fail(4)
    case.ask_for_rest(20)
    case.fail()
    case.wait(19)
    assert (case.state(), case.health.on_trial) == (Health.SUSPECT, False)
    case.wait(1)
    assert case.health.on_trial


# --- slow start


def test_first_start_is_not_slow() -> None:
    case = Case(first=LOADING)
    case.wait(5)
    case.answer()
    assert (case.state(), case.health.share(case.now)) == (Health.UP, 1)


def test_backend_that_was_only_busy_does_not_start_slowly() -> None:
    case = Case()
    case.answer(BUSY)
    case.wait(5)
    case.answer()
    assert case.health.share(case.now) == 1


def test_backend_that_was_down_starts_slowly_after_loading() -> None:
    case = Case()
    case.refuse_question()
    case.now += 1
    case.answer(LOADING)
    case.wait(20)
    case.answer()
    assert (case.state(), case.health.share(case.now)) == (Health.UP, 0.1)


def test_slow_start_can_be_switched_off() -> None:
    case = Case(rules=HealthRules(evidence_seconds=6, suspect_after_seconds=60, slow_start_seconds=0))
    case.restart()
    assert (case.state(), case.health.share(case.now)) == (Health.UP, 1)


# --- any sequence of events

_told = st.sampled_from([READY, BUSY, LOADING, ASLEEP, progress(1), progress(2)])
_ago = st.sampled_from([0.0, 0.5, 5.0, 70.0])
_events = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 7.0, 61.0])),
    st.tuples(st.just("answer"), _told, _ago),
    st.tuples(st.just("silent"), st.integers(1, 3)),
    st.tuples(st.just("refuse"), st.integers(1, 3)),
    st.tuples(st.just("fail"), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("lose"), st.booleans()),
    st.tuples(st.just("time out"), st.integers(1, 3)),
    st.tuples(st.just("succeed"), _ago),
    st.tuples(st.just("rest"), st.sampled_from([0.0, 3.0, 999.0])),
    st.tuples(st.just("work"), _ago, _ago, _ago, st.booleans()),
    st.tuples(st.just("no work")),
)


def happen(case: Case, event: tuple[object, ...]) -> None:  # noqa: C901 - a table
    match event:
        case ("wait", float(seconds)):
            case.sleep(seconds)
        case ("answer", BackendState() as state, float(ago)):
            case.answer(state, asked_at=case.now - ago)
        case ("silent", int(times)):
            case.be_silent(times)
        case ("refuse", int(times)):
            case.refuse_question(times)
        case ("fail", int(times), bool(may_suspend)):
            case.fail(times, may_suspend=may_suspend)
        case ("lose", bool(may_suspend)):
            case.lose(may_suspend=may_suspend)
        case ("time out", int(times)):
            case.time_out(times)
        case ("succeed", float(ago)):
            case.succeed(case.now - ago)
        case ("rest", float(seconds)):
            case.ask_for_rest(seconds)
        case ("work", float(byte), float(since), float(sent), bool(begun)):
            case.activity = Activity(case.now - byte, case.now - since, (case.now - sent) * begun, begun)
            case.look()
        case _:
            case.activity = IDLE
            case.look()


def check(case: Case) -> None:
    health = case.health
    assert health.on_trial <= (health.state is Health.SUSPECT)
    if health.takes_requests:
        assert health.state is Health.UP or health.on_trial or (health.state is Health.BUSY and health.is_last_choice)
    if health.state is Health.UP:
        assert health.takes_requests
    if health.state in (Health.DOWN, Health.STARTING):
        assert not health.takes_requests
    if health.is_stuck:
        assert health.state in (Health.DOWN, Health.SUSPECT)
    assert health.is_stuck or health.state is not Health.DOWN
    assert (health.reason == NO_REASON) == (health.state is Health.UP)
    assert 0 < health.share(case.now) <= 1
    assert health.since <= case.now


@given(st.lists(_events, max_size=40), st.floats(0, 0.999))
def test_any_sequence_of_events_leaves_a_consistent_tracker_that_recovers(
    events: list[tuple[object, ...]], draw: float
) -> None:
    case = Case(first=None)
    case.draw = draw
    for event in events:
        happen(case, event)
        check(case)
    # All is well from now on; requests are sent only in trials.
    case.activity = IDLE
    waited = 0.0
    case.now += 0.01
    case.answer()
    while not case.health.takes_requests:
        assert waited <= 72
        case.wait(1)
        check(case)
        waited += 1
    assert case.state() in (Health.UP, Health.SUSPECT)
    case.now += 1
    case.succeed(sent_at=case.now - 0.5)
    case.answer()
    assert (case.state(), case.health.takes_requests, case.health.is_doubtful) == (Health.UP, True, False)


def test_trial_of_a_stuck_backend_does_not_wait_for_ever() -> None:
    case = Case()
    case.activity = Activity(last_byte_at=case.now, waiting_since=case.now, has_begun=True)
    case.wait(RULES.suspect_after_seconds + 1)
    assert (case.state(), case.health.is_stuck) == (Health.SUSPECT, True)
    while not case.health.on_trial:
        case.wait(1)
    assert not case.health.is_stuck
    case.wait(RULES.suspect_after_seconds - 2)
    assert case.health.on_trial
    case.wait(4)
    assert (case.health.on_trial, case.health.is_stuck) == (False, True)
