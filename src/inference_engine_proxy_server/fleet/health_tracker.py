"""How one backend is, judged from all evidence there is. Pure: it is told what happened and when, and asks nothing.

::

    evidence                                              state
    it tells that it loads its model, or nothing yet      STARTING
    it tells that it works                                UP, or BUSY when it tells that it wants no more
    it does not answer, but bytes of replies still come   BUSY, the last choice
    it cannot be reached, broke a connection, or has      DOWN, until it answers for its state again
      been silent for too long; or it tells so
    5 failures of requests in a row; work that does not   SUSPECT, for 5 s at first and longer each time; then
      move; unanswered requests; falling again and again    one request tries it

What a client did wrong (4xx) never counts. A failure counts for nothing once a request that was sent after it has
succeeded, and neither does a success of a request that was sent before it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.wire.backend_connections import Activity

__all__ = ["Health", "HealthRules", "HealthTracker"]

_FAILURES = 5  # in a row; Envoy's consecutive_5xx
_TIMEOUTS = 2  # requests in a row that got no answer in time: by then minutes have passed
_SUSPENSION_SECONDS = 5.0  # times the number of falls; Envoy's 30 s is long where a GPU stands idle meanwhile
_LONGEST_SUSPENSION_SECONDS = 60.0
_SUSPENSION_JITTER = 0.2
_HARMLESS_FALLS = 2  # a restart, and one more; with a third it is flapping
_FORGIVEN_SECONDS = 60.0  # of good health, after which former falls are forgotten
_SILENCES = 2  # unanswered questions in a row, so that a delay of our own condemns nobody
_REFUSALS = 3  # refused questions in a row while bytes still come
_FRESH_SECONDS = 2.0  # how new bytes must be to speak against a refused question
_FIRST_SHARE = 0.1  # of its usual share, right after it has come back; Envoy's and HAProxy's slow start
_LONGEST_COOLING_SECONDS = 30.0
_SILENT = "it does not answer questions"


class Health(Enum):
    """A backend's state."""

    STARTING = "starting"
    UP = "up"
    BUSY = "busy"
    SUSPECT = "suspect"
    DOWN = "down"


_WELL = (Health.UP, Health.BUSY)


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How evidence is weighed; times in seconds.

    Attributes:
        evidence_seconds: how long something that proved a backend alive counts.
        suspect_after_seconds: how long work may stand still.
        slow_start_seconds: how long a backend that has failed takes to get all of its share again; 0: no time.
    """

    evidence_seconds: float
    suspect_after_seconds: float
    slow_start_seconds: float


class HealthTracker:
    """Weighs the evidence about one backend.

    Args:
        rules: how.
        now: reading of the clock.
        draw: a random number from 0 to below 1.

    Attributes:
        state: what follows from all evidence so far.
        reason: why it is not ``UP``, for people; empty when it is.
        since: since when it is in this state.
        told: the last thing it told us.
        is_doubtful: it has failed since it last succeeded, so that its next success should be reported.
        takes_requests: it is in rotation.
        is_last_choice: only for when nobody else is free.
        on_trial: in rotation for one request, which tries whether it works again.
        is_stuck: what waits for its answer waits in vain.
        is_in_question: it broke a connection, and the question whether that meant more is not answered yet.
    """

    __slots__ = (
        "_cooled_until",
        "_draw",
        "_failed_at",
        "_failures",
        "_falls",
        "_fell",
        "_has_been_up",
        "_lost_at",
        "_lost_reason",
        "_progress",
        "_progress_at",
        "_proved_at",
        "_ramp_since",
        "_refusals",
        "_rules",
        "_silences",
        "_stands_still",
        "_suspended_at",
        "_suspended_until",
        "_suspension_reason",
        "_timeouts",
        "_well_since",
        "is_doubtful",
        "is_in_question",
        "is_last_choice",
        "is_stuck",
        "on_trial",
        "reason",
        "reported",
        "since",
        "state",
        "takes_requests",
    )  # fmt: skip

    def __init__(self, rules: HealthRules, now: float, draw: Callable[[], float] = random.random) -> None:
        self._rules = rules
        self._draw = draw
        self.state = Health.STARTING
        self.reason = "not asked yet"
        self.since = now
        self.reported = BackendState(ready=False, live=False, starting=True, reason=self.reason)
        self.is_doubtful = False
        self.takes_requests = False
        self.is_last_choice = False
        self.on_trial = False
        self.is_stuck = False
        self.is_in_question = False
        self._has_been_up = False
        self._ramp_since = -math.inf
        self._well_since = now
        self._fell = False  # and has not come back
        self._falls = 0  # times that it left the rotation by failing, since it was last well for long enough
        self._proved_at = -math.inf  # when something last proved it alive
        self._lost_at = -math.inf  # when it last refused or broke a request's connection
        self._lost_reason = ""  # not empty: it has not answered for its state since then
        self._silences = 0
        self._refusals = 0
        self._failures = 0
        self._failed_at = -math.inf
        self._timeouts = 0
        self._progress: float | None = None
        self._progress_at = -math.inf
        self._suspended_at = -math.inf
        self._suspended_until = -math.inf
        self._suspension_reason = ""  # not empty: suspended, or on trial after that
        self._stands_still = False  # that is why it is suspended, so it ends when work is seen to move
        self._cooled_until = -math.inf

    @property
    def is_silent(self) -> bool:
        """It did not answer the last question."""
        return self._silences > 0

    # --- evidence from questions

    def answered(self, told: BackendState, *, asked_at: float, now: float) -> None:
        """It answered a question about its state that was asked at ``asked_at``."""
        if asked_at <= self._lost_at:
            return  # the answer is older than the failure
        self.reported = told
        self._proved_at = now
        self._silences = self._refusals = 0
        self._lost_reason = ""
        self.is_in_question = False
        if told.progress is not None and told.progress != self._progress:
            self._progress = told.progress
            self._progress_at = now
        if asked_at > self._failed_at:
            self.is_last_choice = False
        if told.starting:  # what failed meanwhile was no failure
            self._forget_failures()

    def was_silent(self) -> None:
        """It did not answer. That alone proves nothing: a long prefill may keep it from it."""
        self._silences += 1
        self.is_in_question = False

    def was_unreachable(self, now: float, activity: Activity) -> None:
        """No connection could be made to ask it."""
        self._refusals += 1
        self.is_in_question = False
        if self._refusals >= _REFUSALS or now - activity.last_byte_at > _FRESH_SECONDS:
            self._lose("it cannot be reached")

    # --- evidence from requests

    def lost_connection(self, now: float, reason: str, *, is_refused: bool, may_suspend: bool) -> None:
        """It refused a request's connection, or broke it: nobody goes there until it answers for its state."""
        was_lost = bool(self._lost_reason)
        self.is_in_question = not is_refused and (self.is_in_question or not was_lost)
        self._lost_at = now
        self._lose(reason)
        if not was_lost:  # all that break together are one failure: a restart must not be followed by a suspension
            self.failed(now, reason, may_suspend=may_suspend)

    def failed(self, now: float, reason: str, *, may_suspend: bool) -> None:
        """A request failed there.

        Args:
            now: reading of the clock.
            reason: how, for people.
            may_suspend: enough others are in rotation.
        """
        self._failures += 1
        self._failed_at = now
        self.is_doubtful = self.is_last_choice = True
        if self.on_trial or (self._failures >= _FAILURES and may_suspend and not self._suspension_reason):
            many = f"{self._failures} requests in a row failed, the last one because " if self._failures > 1 else ""
            self._fall_out(now, many + reason, stands_still=False)

    def timed_out(self, now: float) -> None:
        """It kept a request for as long as is allowed without sending anything."""
        self._timeouts += 1
        self._failed_at = now
        self.is_doubtful = self.is_last_choice = True
        if self.on_trial or (self._timeouts >= _TIMEOUTS and not self._suspension_reason):
            self._fall_out(now, "it leaves requests without an answer", stands_still=True)

    def succeeded(self, sent_at: float) -> None:
        """A request that was sent at ``sent_at`` was answered well."""
        if sent_at <= self._failed_at or sent_at <= self._suspended_at:
            return
        self._forget_failures()

    def asks_for_rest(self, now: float, seconds: float) -> None:
        """It answered that the next request should come no sooner than in so many seconds (``Retry-After``)."""
        self._cooled_until = now + min(seconds, _LONGEST_COOLING_SECONDS)

    # --- the verdict

    def review(self, now: float, activity: Activity) -> None:
        """Bring the state up to date."""
        self._look_for_silence(now, activity)
        self._look_for_work(now, activity)
        self._look_for_flapping(now)
        before = self.state
        self.state, self.reason = self._verdict(now)
        may_be_tried = now >= max(self._suspended_until, self._cooled_until)
        self.on_trial = self.state is Health.SUSPECT and may_be_tried
        is_merely_silent = self.state is Health.BUSY and self.reason == _SILENT
        self.takes_requests = self.state is Health.UP or self.on_trial or is_merely_silent
        is_down = self.state is Health.DOWN and not self.is_in_question
        self.is_stuck = is_down or (self.state is Health.SUSPECT and self._stands_still and not self.on_trial)
        if is_merely_silent:
            self.is_last_choice = True
        if self.state is not before:
            self.since = now
            self._note_change(now, before)
        if self.state in _WELL and now - self._well_since >= _FORGIVEN_SECONDS:
            self._falls = 0

    def share(self, now: float) -> float:
        """The part of its usual share of requests that it should get now, above 0 and up to 1."""
        seconds = self._rules.slow_start_seconds
        grown = 1.0 if seconds <= 0 else (now - self._ramp_since) / seconds
        return max(_FIRST_SHARE, min(1.0, grown))

    def _verdict(self, now: float) -> tuple[Health, str]:
        told = self.reported
        if self._lost_reason:
            return Health.DOWN, self._lost_reason
        if not told.live:
            return (Health.STARTING if told.starting else Health.DOWN), told.reason
        if self._suspension_reason:
            return Health.SUSPECT, self._suspension_reason
        if now < self._cooled_until:
            return Health.BUSY, "it asked for a pause"
        if not told.ready:
            return Health.BUSY, told.reason
        return (Health.BUSY, _SILENT) if self._silences else (Health.UP, "")

    def _note_change(self, now: float, before: Health) -> None:
        if self.state is Health.DOWN:
            self._fell = self._has_been_up
            if not self._suspension_reason:  # that was counted
                self._falls += self._fell
        elif self.state is Health.SUSPECT:
            self._fell = True
        elif self.state in _WELL:
            if self._fell:
                self._ramp_since = now
            if before not in _WELL:
                self._well_since = now
            self._fell = False
            self._has_been_up = True

    def _look_for_silence(self, now: float, activity: Activity) -> None:
        alive_at = max(self._proved_at, activity.last_byte_at)
        if self._silences >= _SILENCES and not self._lost_reason and now - alive_at > self._rules.evidence_seconds:
            self._lose("it has been silent for too long")

    def _look_for_flapping(self, now: float) -> None:
        is_back = self.reported.live and not self._lost_reason
        if self.state in (Health.DOWN, Health.STARTING) and is_back and self._falls > _HARMLESS_FALLS:
            self._suspend(now, "it keeps failing", self._falls - _HARMLESS_FALLS, stands_still=False)

    def _look_for_work(self, now: float, activity: Activity) -> None:
        moved_at = max(activity.last_byte_at, self._progress_at)
        if self._suspension_reason:
            if activity.answered_sent_at > self._suspended_at or (self._stands_still and moved_at > self._suspended_at):
                self._forget_failures()
            elif not (self._stands_still and self.on_trial):
                return  # else what tries it may stand still, too
        if activity.waiting_since is None or not (activity.has_begun or self.reported.progress is not None):
            return
        still_seconds = now - max(moved_at, activity.waiting_since, self._suspended_until)
        if still_seconds >= self._rules.suspect_after_seconds:
            self._fall_out(now, f"nothing has moved there for {still_seconds:.0f} s", stands_still=True)

    def _fall_out(self, now: float, reason: str, *, stands_still: bool) -> None:
        self._falls += 1
        self._suspend(now, reason, self._falls, stands_still=stands_still)

    def _suspend(self, now: float, reason: str, times: int, *, stands_still: bool) -> None:
        seconds = min(_SUSPENSION_SECONDS * times, _LONGEST_SUSPENSION_SECONDS)
        self._suspended_at = now
        until = now + seconds * (1 + _SUSPENSION_JITTER * self._draw())
        self._suspended_until = max(self._suspended_until, until)
        self._suspension_reason = reason
        self._stands_still = stands_still
        self.is_doubtful = True

    def _lose(self, reason: str) -> None:
        self._lost_reason = reason
        self._proved_at = -math.inf

    def _forget_failures(self) -> None:
        self._failures = self._timeouts = 0
        self._suspension_reason = ""
        self._suspended_until = -math.inf
        self.is_doubtful = self.is_last_choice = self._stands_still = False
