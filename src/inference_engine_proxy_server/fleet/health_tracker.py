"""Judges the health of one backend by all evidence. Pure: no clock and no I/O; callers report events with their times.

::

    evidence                                              state
    it reports that it loads its model, or nothing yet    STARTING
    it reports that it works                              UP, or BUSY when it reports that it is at its limit
    it does not answer, but bytes of replies still come   BUSY, the last choice
    it cannot be reached, broke a connection, or was      DOWN, until it answers a poll again
      silent for too long; or it reports so
    5 failed requests in a row; work without progress;    SUSPECT; every 5 s one request tests it, until one
      unanswered requests; repeated failures (flapping)     succeeds

Client errors (4xx) never count. A failure stops counting once a request that was sent after it has succeeded; the
success of a request that was sent before it proves nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.fleet.health import Cause, Health, HealthRules
from inference_engine_proxy_server.fleet.suspension import Suspension
from inference_engine_proxy_server.wire.backend_connections import Activity

__all__ = ["HealthTracker"]

_FAILURES = 5  # in a row; Envoy's consecutive_5xx
_TIMEOUTS = 2  # consecutive requests without an answer in time, which is minutes
_FORGIVEN_SECONDS = 60.0  # of good health after which earlier failures are forgotten
_SILENCES = 2  # unanswered polls in a row, so that a delay of the proxy itself does not count against a backend
_REFUSALS = 3  # refused polls in a row while bytes still come
_FRESH_SECONDS = 2.0  # maximum age of bytes that outweigh a refused poll
_FIRST_SHARE = 0.1  # of its usual share, right after its recovery; as the slow start of Envoy and HAProxy
_LONGEST_SLOW_START = 4  # times the usual one, for a backend that has fallen as often or more often
_LONGEST_PAUSE_SECONDS = 30.0


class HealthTracker:
    """Judges one backend.

    Args:
        rules: how evidence is judged.
        now: a reading of the clock.
        draw: returns a random number from 0 to below 1.

    Attributes:
        state: follows from all evidence up to the latest review.
        reason: why the state is not ``UP``, for people; empty when it is.
        since: when the backend got into this state.
        reported: its latest report.
        is_doubtful: it failed since it last succeeded, so its next success should be reported.
        takes_requests: it is in rotation.
        is_last_choice: it gets a request only when no other backend is free.
        on_trial: it is in rotation for one request, which tests whether it works again.
        is_stuck: requests without an answer will not get one soon.
        is_in_question: it broke a connection and has not been polled since, so it may still work.
        is_unknown: it has neither answered nor failed since it joined the fleet.
    """

    __slots__ = (
        "_failed_at", "_failures", "_fell", "_has_been_up", "_is_lost", "_lost_at", "_lost_reason", "_paused_until",
        "_progress", "_progress_at", "_proved_at", "_ramp_since", "_refusals", "_rules", "_silence_reason",
        "_silences", "_suspension", "_timeouts", "_well_since", "is_doubtful", "is_in_question", "is_last_choice",
        "is_stuck", "is_unknown", "on_trial", "reason", "reported", "since", "state", "takes_requests",
    )  # fmt: skip

    def __init__(self, rules: HealthRules, now: float, draw: Callable[[], float] = random.random) -> None:
        self._rules = rules
        self.state = Health.STARTING
        self.reason = "not polled yet"
        self.since = now
        self.reported = BackendState(ready=False, live=False, starting=True, reason=self.reason)
        self.is_doubtful = False
        self.takes_requests = False
        self.is_last_choice = False
        self.on_trial = False
        self.is_stuck = False
        self.is_in_question = False
        self.is_unknown = True
        self._has_been_up = False
        self._ramp_since = -math.inf
        self._well_since = now
        self._fell = False  # and has not come back
        self._proved_at = -math.inf  # when it last showed a sign of life
        self._is_lost = False  # it has not answered a poll since it was lost
        self._lost_at = -math.inf  # when it last refused or broke a request's connection
        self._lost_reason = ""
        self._silences = 0
        self._silence_reason = ""
        self._refusals = 0
        self._failures = 0
        self._failed_at = -math.inf
        self._timeouts = 0
        self._progress: float | None = None
        self._progress_at = -math.inf
        self._suspension = Suspension(draw)
        self._paused_until = -math.inf

    def __repr__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"<HealthTracker {self.state.value}{reason} {self._suspension!r}>"

    @property
    def is_silent(self) -> bool:
        """Whether it did not answer the latest poll."""
        return self._silences > 0

    # --- evidence from polls

    def answered(self, state: BackendState, *, asked_at: float, now: float) -> None:
        """It answered a poll that was sent at ``asked_at``."""
        if asked_at <= self._lost_at:
            return  # the answer is older than the failure
        self.reported = state
        self._proved_at = now
        self._silences = self._refusals = 0
        self._is_lost = self.is_in_question = self.is_unknown = False
        if state.progress is not None and state.progress != self._progress:
            self._progress = state.progress
            self._progress_at = now
        if asked_at > self._failed_at:
            self.is_last_choice = False
        if state.starting:  # failures during a start do not count
            self._forget_failures()

    def was_silent(self, reason: str = "") -> None:
        """It did not answer a poll, for ``reason`` if that is known. A long prefill may keep it from answering."""
        self._silences += 1
        self._silence_reason = reason
        self.is_in_question = False

    def stood_still(self) -> None:
        """None of its requests made progress, and it did not even answer a probe: it is frozen."""
        if not self._is_lost:
            self._lose("none of its requests makes progress, and it answers no probe")

    def was_unreachable(self, now: float, activity: Activity, reason: str = "it cannot be reached") -> None:
        """No connection could be made for a poll."""
        self._refusals += 1
        self.is_in_question = False
        if self._refusals >= _REFUSALS or now - activity.last_byte_at > _FRESH_SECONDS:
            self._lose(reason)

    # --- evidence from requests

    def lost_connection(self, now: float, reason: str, *, is_refused: bool, may_suspend: bool) -> None:
        """It refused a request's connection, or broke it: it gets no requests until it answers a poll."""
        was_lost = self._is_lost
        self.is_in_question = not is_refused and (self.is_in_question or not was_lost)
        self._lost_at = now
        self._lose(reason)
        if not was_lost:  # connections that break together are one failure: a restart must not lead to a suspension
            self.failed(now, reason, may_suspend=may_suspend)

    def failed(self, now: float, reason: str, *, may_suspend: bool) -> None:
        """A request failed on this backend.

        Args:
            now: a reading of the clock.
            reason: how, for people.
            may_suspend: whether enough other backends are in rotation.
        """
        self._failures += 1
        self._failed_at = now
        self.is_doubtful = self.is_last_choice = True
        if self.on_trial or (self._failures >= _FAILURES and may_suspend and not self._suspension.is_active):
            many = f"{self._failures} requests in a row failed, the last one because " if self._failures > 1 else ""
            self._suspend(now, many + reason, stands_still=False)

    def timed_out(self, now: float) -> None:
        """It sent no byte of a reply within a deadline."""
        self._timeouts += 1
        self._failed_at = now
        self.is_doubtful = self.is_last_choice = True
        if self.on_trial or (self._timeouts >= _TIMEOUTS and not self._suspension.is_active):
            self._suspend(now, "it leaves requests without an answer", stands_still=True)

    def succeeded(self, sent_at: float) -> None:
        """A request that was sent at ``sent_at`` succeeded."""
        if sent_at > self._failed_at and sent_at > self._suspension.began_at:
            self._forget_failures()

    def was_doubted(self, *, fails_requests: bool) -> None:
        """Another process found it out of order, which alone never takes it out of rotation.

        It is the last choice until it answers a poll. If it ``fails_requests`` there, the next failed request suspends
        it, unless one succeeds before.
        """
        if not self.state.is_well:
            return
        self.is_doubtful = self.is_last_choice = True
        if fails_requests:
            self._failures = max(self._failures, _FAILURES - 1)

    def asks_for_rest(self, now: float, seconds: float) -> None:
        """It asked for a pause of ``seconds`` (``Retry-After``)."""
        self._paused_until = now + min(seconds, _LONGEST_PAUSE_SECONDS)

    # --- the verdict

    def review(self, now: float, activity: Activity) -> None:
        """Update all attributes."""
        self._check_silence(now, activity)
        self._check_work(now, activity)
        is_back = self.reported.live and not self._is_lost
        if self.state in (Health.DOWN, Health.STARTING) and is_back and self._suspension.begin_if_flapping(now):
            self.is_doubtful = True
        before = self.state
        self.state, cause = self._verdict(now)
        self.reason = self._reason_of(cause)
        may_be_tried = now >= max(self._suspension.until, self._paused_until)
        self.on_trial = self.state is Health.SUSPECT and may_be_tried
        self.takes_requests = self.state is Health.UP or self.on_trial or cause is Cause.SILENT
        if cause is Cause.SILENT:
            self.is_last_choice = True
        is_down = self.state is Health.DOWN and not self.is_in_question
        stands_still = self._suspension.stands_still and not self.on_trial
        self.is_stuck = is_down or (self.state is Health.SUSPECT and stands_still)
        if self.state is not before:
            self.since = now
            self._count_change(now, before)
        if self.state.is_well and now - self._well_since >= _FORGIVEN_SECONDS:
            self._suspension.falls = 0

    def share(self, now: float) -> float:
        """The fraction of its usual share of requests that it should get now, above 0 and up to 1."""
        seconds = self._rules.slow_start_seconds * min(max(1, self._suspension.falls), _LONGEST_SLOW_START)
        grown = 1.0 if seconds <= 0 else (now - self._ramp_since) / seconds
        return max(_FIRST_SHARE, min(1.0, grown))

    def _verdict(self, now: float) -> tuple[Health, Cause]:
        reported = self.reported
        if self._is_lost:
            return Health.DOWN, Cause.LOST
        if not reported.live:
            return Health.STARTING if reported.starting else Health.DOWN, Cause.REPORTED
        if self._suspension.is_active:
            return Health.SUSPECT, Cause.SUSPENDED
        if now < self._paused_until:
            return Health.BUSY, Cause.PAUSED
        if not reported.ready:
            return Health.BUSY, Cause.REPORTED
        return (Health.BUSY, Cause.SILENT) if self._silences else (Health.UP, Cause.NONE)

    def _reason_of(self, cause: Cause) -> str:
        match cause:
            case Cause.LOST:
                return self._lost_reason
            case Cause.REPORTED:
                return self.reported.reason
            case Cause.SUSPENDED:
                return self._suspension.reason
            case Cause.PAUSED:
                return "it asked for a pause"
            case Cause.SILENT:
                return self._silence_reason or "it does not answer polls"
            case Cause.NONE:
                return ""

    def _count_change(self, now: float, before: Health) -> None:
        if self.state is Health.DOWN:
            self._fell = self._has_been_up
            if not self._suspension.is_active:  # a suspension has been counted already
                self._suspension.falls += self._fell
        elif self.state is Health.SUSPECT:
            self._fell = True
        elif self.state.is_well:
            if self._fell:
                self._ramp_since = now
            if not before.is_well:
                self._well_since = now
            self._fell = False
            self._has_been_up = True

    def _check_silence(self, now: float, activity: Activity) -> None:
        alive_at = max(self._proved_at, activity.last_byte_at)
        if self._silences >= _SILENCES and not self._is_lost and now - alive_at > self._rules.evidence_seconds:
            self._lose(self._silence_reason or "it has been silent for too long")

    def _check_work(self, now: float, activity: Activity) -> None:
        moved_at, suspension = max(activity.last_byte_at, self._progress_at), self._suspension
        if suspension.is_active:
            has_moved = suspension.stands_still and moved_at > suspension.began_at
            if activity.answered_sent_at > suspension.began_at or has_moved:
                self._forget_failures()
            elif not (suspension.stands_still and self.on_trial):
                return  # the work of the trial may stall as well
        if activity.waiting_since is None or not (activity.has_begun or self.reported.progress is not None):
            return
        still_seconds = now - max(moved_at, activity.waiting_since, suspension.until)
        if still_seconds >= self._rules.suspect_after_seconds:
            self._suspend(now, f"nothing has moved there for {still_seconds:.0f} s", stands_still=True)

    def _suspend(self, now: float, reason: str, *, stands_still: bool) -> None:
        self._suspension.begin(now, reason, stands_still=stands_still)
        self.is_doubtful = True

    def _lose(self, reason: str) -> None:
        self._is_lost = True
        self.is_unknown = False
        self._lost_reason = reason
        self._proved_at = -math.inf

    def _forget_failures(self) -> None:
        self._failures = self._timeouts = 0
        self._suspension.lift()
        self.is_doubtful = self.is_last_choice = False
