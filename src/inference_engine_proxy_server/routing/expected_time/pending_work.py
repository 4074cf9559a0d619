"""What of this proxy's requests a backend has still to read, and how many answers it is writing.

The order in which prompts were sent is the order in which engines read them. So the first token of one answer tells
that all prompts before it have been read, also those of answers that come in one piece and show nothing until then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

from inference_engine_proxy_server.routing.expected_time.speeds import Speeds, fill_gaps

__all__ = ["PendingRequest", "PendingWork", "Reuse", "compare"]

_GAIN = 1 / 32  # of each answer in the mean of how long answers take
_USUAL_ANSWER_SECONDS = 5.0
_FACTS_SECONDS = 0.005  # between two replies that are read: when so many come at a time, they say the same
_LIKE = 1.6  # times as fast as usual, or as slow, can be chance


class Reuse(msgspec.Struct, gc=False):
    """Tokens of prompts, in those requests whose replies have told both how many they had and how many were cached.

    Attributes:
        sent: all of them.
        predicted: those that the backend was thought to hold when it got them.
        cached: those that it held, as it says.
    """

    sent: int = 0
    predicted: float = 0.0
    cached: int = 0


class PendingRequest:
    """One request's work on one backend.

    Attributes:
        unread: tokens of its prompt that the backend does not hold, as far as is known.
        is_streamed: its first token will be seen.
        due: when that is expected.
        read_seconds: how long its prompt was read; 0 until it is seen, or if it was read together with others.
        began_at: when its answer began.
        streams: answers that were written then, its own included.
    """

    __slots__ = ("began_at", "due", "is_streamed", "read_seconds", "streams", "unread")

    def __init__(self, unread: float, *, is_streamed: bool) -> None:
        self.unread = unread
        self.is_streamed = is_streamed
        self.due = 0.0
        self.read_seconds = 0.0
        self.began_at = 0.0
        self.streams = 0


class PendingWork:
    """Of one backend.

    Attributes:
        speeds: how fast it works.
        unread: tokens of prompts that it has not read.
        writing: answers under way.
        reads: tokens of prompts in a second.
        sent_at: when it last got a request; before the first one 0.
        answers: of those that it has given, how many have told how long they took.
        answer_seconds: that, of late, from the first token to the last.
        step_seconds, stream_seconds: what a token of each answer takes, and how much more for each answer at a time.
        reuse: what it did not have to read.
    """

    __slots__ = (
        "_facts_at", "_fill", "_filled_by", "_reading", "_since", "answer_seconds", "answers", "reads", "reuse",
        "sent_at", "speeds", "step_seconds", "stream_seconds", "unread", "writing",
    )  # fmt: skip

    def __init__(self) -> None:
        self.speeds = Speeds()
        self.reuse = Reuse()
        self.reads = self.speeds.reads
        self.unread = 0.0
        self.writing = 0
        self.sent_at = 0.0
        self.answers = 0
        self.answer_seconds = _USUAL_ANSWER_SECONDS
        self.step_seconds = self.speeds.step_seconds
        self.stream_seconds = self.speeds.stream_seconds
        self._fill = 0.0  # of its memory for contexts, when it last told it
        self._filled_by = 0.0  # requests that it had then
        self._reading: dict[PendingRequest, None] = {}
        self._facts_at = -math.inf  # when one of its replies was last read
        self._since = 0.0  # when it began to read what it is reading

    @property
    def reading(self) -> int:
        """Prompts that it has not read."""
        return len(self._reading)

    def take_over_memory(self, fill: float, load: float) -> None:
        """It tells what share of its memory for contexts is in use, having so many requests."""
        self._fill = fill
        self._filled_by = load

    def fill_with(self, load: float) -> float:
        """The share of its memory for contexts that so many requests should use; 0: it tells nothing."""
        return self._fill * load / max(1.0, self._filled_by)

    def seconds_ahead(self, now: float) -> float:
        """How long it will be reading what it has been sent."""
        while self._reading:  # what will show nothing when its prompt has been read
            first = next(iter(self._reading))
            if first.is_streamed or first.due > now:
                return max(0.0, self.unread / self.reads - (now - self._since))
            self._has_read(first, first.due)
        return 0.0

    def seconds_of_answer(self, most_tokens: float) -> float:
        """What an answer that may have so many tokens takes from the first to the last."""
        return min(self.answer_seconds, most_tokens * (self.step_seconds + self.stream_seconds * self.writing))

    def send(self, unread: float, now: float, *, is_streamed: bool) -> PendingRequest:
        """It gets a prompt of so many tokens that it does not hold."""
        ahead = self.seconds_ahead(now)
        errand = PendingRequest(unread, is_streamed=is_streamed)
        errand.due = now + ahead + unread / self.reads + self.speeds.seconds_a_token(self.writing)
        if not self._reading:
            self._since = now
        self._reading[errand] = None
        self.unread += unread
        self.sent_at = now
        return errand

    def begin(self, errand: PendingRequest, now: float) -> None:
        """The first token of its answer is there."""
        if errand not in self._reading:
            return
        since, is_next = self._since, next(iter(self._reading)) is errand
        while errand in self._reading:
            self._has_read(next(iter(self._reading)), now)
        if is_next:
            errand.read_seconds = now - since

    def end(self, errand: PendingRequest, now: float) -> None:
        """Its answer is complete."""
        was_seen = errand not in self._reading and errand.is_streamed
        self.begin(errand, now)
        self.writing -= 1
        if was_seen:
            self.answers += 1
            gain = max(_GAIN, 1 / self.answers)
            self.answer_seconds += gain * (now - errand.began_at - self.answer_seconds)

    def learn(
        self,
        errand: PendingRequest,
        now: float,
        read_tokens: float | None,
        answer_tokens: float | None,
        written_ms: float | None = None,
    ) -> None:
        """Its answer tells what it took: tokens that were read, and written, and for how long; ``None``: it does not.

        The engine's own time goes before ours: what the network and a slow client take is not in it.
        """
        speeds = self.speeds
        if errand.read_seconds > 0:
            # A prompt that comes while a step is under way waits for its end first: half a step on average.
            waited = 1.5 * speeds.seconds_a_token(errand.streams)
            tokens = errand.unread if read_tokens is None else read_tokens
            speeds.note_reading(tokens, max(errand.read_seconds / 4, errand.read_seconds - waited))
        if answer_tokens is None or (written_ms is None and not errand.is_streamed):
            return
        seconds = now - errand.began_at if written_ms is None else written_ms / 1000
        speeds.note_writing(answer_tokens - 1, seconds, (errand.streams + self.writing + 1) / 2)

    def wants_facts(self, now: float) -> bool:
        """Whether to read what the reply says that has just ended."""
        if now - self._facts_at < _FACTS_SECONDS:
            return False
        self._facts_at = now
        return True

    def drop(self, errand: PendingRequest) -> None:
        """It will not be done: it was not delivered, or nobody waits for it any more."""
        if errand in self._reading:
            del self._reading[errand]
            self.unread -= errand.unread
        else:
            self.writing -= 1

    def _has_read(self, errand: PendingRequest, now: float) -> None:
        del self._reading[errand]
        self.unread = self.unread - errand.unread if self._reading else 0.0
        self._since = max(self._since, now)
        self.writing += 1
        errand.began_at = now
        errand.streams = self.writing


def compare(works: Sequence[PendingWork]) -> None:
    """Let each be as fast as all are, or as many times slower or faster as it reads.

    What differs between like machines is chance: a speed of one backend rests on its latest few requests, and a line
    of its own on about as many answers at a time. It would say more than the loads do.
    """
    fill_gaps([work.speeds for work in works])
    reads = median(work.speeds.reads for work in works)
    step = median(work.speeds.step_seconds for work in works)
    stream = median(work.speeds.stream_seconds for work in works)
    answers = [work.answer_seconds for work in works if work.answers]
    usual_answer = median(answers) if answers else _USUAL_ANSWER_SECONDS
    for work in works:
        if not work.answers:
            work.answer_seconds = usual_answer
        slowness = reads / work.speeds.reads
        if 1 / _LIKE < slowness < _LIKE:
            slowness = 1.0
        work.reads = reads / slowness
        work.step_seconds = slowness * step
        work.stream_seconds = slowness * stream
