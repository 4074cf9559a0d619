"""A backend's pending work: prompts that it has yet to read (prefill), and answers that it is writing (decode).

Engines read prompts in the order in which they were sent. The first token of one answer therefore shows that all
earlier prompts have been read, including those of answers that are not streamed and show nothing until complete.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.expected_time.slot_contents import Slot, SlotContents
from inference_engine_proxy_server.routing.expected_time.speeds import Speeds, fill_gaps

__all__ = ["PendingRequest", "PendingWork", "Reuse", "compare"]

_GAIN = 1 / 32  # weight of each answer in the moving average of answer durations
_USUAL_ANSWER_SECONDS = 5.0
_FACTS_SECONDS = 0.005  # between two replies that are parsed: more would add no information
_EXPECTED = 0.5  # of the tokens that a backend was expected to read; if it reads fewer, the expectation was wrong
_VALID_SECONDS = 60.0  # after the last measurement, a backend counts as slower or faster at reading for so long


class Reuse(msgspec.Struct, gc=False):
    """Prompt token counts, over all requests whose replies report both the prompt's tokens and the cached ones.

    Attributes:
        sent: all prompt tokens.
        predicted: tokens that the backend was expected to have cached when the request was sent.
        cached: tokens that the backend reports as cached.
    """

    sent: int = 0
    predicted: float = 0.0
    cached: int = 0


class PendingRequest:
    """One request's pending work on one backend.

    Attributes:
        unread: tokens of its prompt that the backend is not expected to have cached.
        is_streamed: the answer is streamed, so that its first token can be observed.
        due: when the first token is expected.
        is_alone: the backend reads no other prompt between its sending and its first token.
        read_seconds: how long the backend read the prompt; 0 while unknown, or if it was not alone.
        began_at: when the answer began.
        streams: number of answers being written at that time, including its own.
        slot: the slot that it occupies; ``None`` if the backend's slots are not followed.
    """

    __slots__ = ("began_at", "due", "is_alone", "is_streamed", "read_seconds", "slot", "streams", "unread")

    def __init__(self, unread: float, slot: Slot | None, *, is_streamed: bool, is_alone: bool) -> None:
        self.unread = unread
        self.slot = slot
        self.is_streamed = is_streamed
        self.is_alone = is_alone
        self.due = 0.0
        self.read_seconds = 0.0
        self.began_at = 0.0
        self.streams = 0


class PendingWork:
    """The pending work and the speeds of one backend.

    Attributes:
        speeds: speeds learned from this backend's own requests.
        unread: total prompt tokens that the backend has yet to read.
        writing: number of answers being written.
        reads: reading speed, in prompt tokens per second.
        sent_at: when the last request was sent; 0 before the first one.
        answers: number of answers whose duration was measured.
        answer_seconds: moving average of answer durations, from the first token to the last.
        step_seconds, stream_seconds: the time for one token of each answer is ``step_seconds``, plus ``stream_seconds``
            for each concurrent answer.
        reuse: how much of the prompts was cached.
        memory_use: last reported share of the KV cache in use (0 to 1); 0 if the backend reports none.
        contents: what its slots hold.
    """

    __slots__ = (
        "_assumed_read", "_busy_since", "_busy_tokens", "_facts_at", "_memory_load", "_read_at", "_reading",
        "_reading_since", "answer_seconds", "answers", "contents", "memory_use", "reads", "reuse", "sent_at", "speeds",
        "step_seconds", "stream_seconds", "unread", "writing",
    )  # fmt: skip

    def __init__(self) -> None:
        self.speeds = Speeds()
        self.reuse = Reuse()
        self.contents = SlotContents()
        self.reads = self.speeds.reads
        self.unread = 0.0
        self.writing = 0
        self.sent_at = 0.0
        self.answers = 0
        self.answer_seconds = _USUAL_ANSWER_SECONDS
        self.step_seconds = self.speeds.step_seconds
        self.stream_seconds = self.speeds.stream_seconds
        self.memory_use = 0.0
        self._memory_load = 0.0  # number of requests when ``memory_use`` was reported
        self._reading: dict[PendingRequest, None] = {}
        self._assumed_read: set[PendingRequest] = set()  # due, not streamed, and no later answer has begun
        self._facts_at = -math.inf  # when one of its replies was last parsed
        self._reading_since = 0.0  # when the backend began to read the first prompt in ``_reading``
        self._read_at = -math.inf  # when the reading speed was last measured
        self._busy_since = 0.0  # when it began to read after it had nothing to read
        self._busy_tokens = 0.0  # tokens read since then

    @property
    def reading(self) -> int:
        """Number of prompts that the backend has yet to read."""
        return len(self._reading)

    def take_over_memory(self, fill: float, load: float) -> None:
        """Record the reported share of the KV cache in use (0 to 1), and the number of requests at that time."""
        self.memory_use = fill
        self._memory_load = load

    def fill_with(self, load: float) -> float:
        """The expected share of the KV cache in use with ``load`` requests; 0 if the backend reports none."""
        return self.memory_use * load / max(1.0, self._memory_load)

    def usable(self, prompt: Prompt, held: int, slots: float, *, had_last_turn: bool) -> float:
        """Bytes of ``prompt`` that the backend can reuse for a new request.

        Args:
            prompt: the prompt.
            held: bytes of it that the backend holds according to the prefix index.
            slots: number of slots; infinite if unknown.
            had_last_turn: the backend wrote the conversation's last answer, so it holds that as well.
        """
        usable = held if slots == math.inf or not held else self.contents.usable(prompt.chain, held, slots)
        return max(held, prompt.history) if had_last_turn and usable >= held > 0 else usable

    def seconds_ahead(self, now: float) -> float:
        """The time until the backend has read all prompts sent to it."""
        while self._reading:  # remove due requests that are not streamed, whose first token cannot be observed
            first = next(iter(self._reading))
            if first.is_streamed or first.due > now:
                return max(0.0, self.unread / self.reads - (now - self._reading_since))
            self._has_read(first, first.due)
            self._assumed_read.add(first)
        return 0.0

    def seconds_of_answer(self, most_tokens: float) -> float:
        """The expected duration of an answer of at most ``most_tokens``, from the first token to the last."""
        return min(self.answer_seconds, most_tokens * (self.step_seconds + self.stream_seconds * self.writing))

    def send(self, unread: float, now: float, *, is_streamed: bool, slot: Slot | None = None) -> PendingRequest:
        """Add a request whose prompt has ``unread`` tokens that the backend has not cached, in ``slot``."""
        ahead = self.seconds_ahead(now)
        is_idle = not self._reading and not self._assumed_read
        if is_idle:
            self._busy_since, self._busy_tokens = now, 0.0
        request = PendingRequest(unread, slot, is_streamed=is_streamed, is_alone=is_idle and is_streamed)
        request.due = now + ahead + unread / self.reads + self.speeds.seconds_a_token(self.writing)
        if self._reading:
            next(iter(self._reading)).is_alone = False
        else:
            self._reading_since = now
        self._reading[request] = None
        self.unread += unread
        self.sent_at = now
        return request

    def begin(self, request: PendingRequest, now: float) -> None:
        """Record the first token of the request's answer."""
        if request not in self._reading:
            return
        if request.is_alone:
            request.read_seconds = now - self._reading_since
        while request in self._reading:
            self._has_read(next(iter(self._reading)), now)
        self._assumed_read.clear()
        if request.is_streamed and not self.speeds.is_known:
            self.speeds.note_least_reading(self._busy_tokens, now - self._busy_since)

    def end(self, request: PendingRequest, now: float) -> None:
        """Record the end of the request's answer."""
        was_seen = request not in self._reading and request.is_streamed
        self._assumed_read.discard(request)
        self.begin(request, now)
        self.writing -= 1
        if request.slot is not None:
            self.contents.release(request.slot)
        if was_seen:
            self.answers += 1
            gain = max(_GAIN, 1 / self.answers)
            self.answer_seconds += gain * (now - request.began_at - self.answer_seconds)

    def learn(
        self,
        request: PendingRequest,
        now: float,
        read_tokens: float | None,
        answer_tokens: float | None,
        written_ms: float | None = None,
    ) -> None:
        """Learn speeds from a complete answer.

        Args:
            request: the answer's request.
            now: when the answer ended.
            read_tokens: prompt tokens that the engine reports as read; ``None`` if unknown.
            answer_tokens: tokens that the engine reports as written; ``None`` if unknown.
            written_ms: writing time that the engine reports; ``None`` if unknown. Preferred to the proxy's own
                measurement, which includes delays by the network and by a slow client.
        """
        speeds = self.speeds
        if read_tokens is not None and read_tokens < _EXPECTED * request.unread:
            speeds.least_reads = 0.0  # its cache is warmer than expected, as after a restart of the proxy
        if request.read_seconds > 0:
            # A prompt that arrives during a decoding step waits for the step's end first, half a step on average.
            waited = 1.5 * speeds.seconds_a_token(request.streams)
            tokens = request.unread if read_tokens is None else read_tokens
            floor = speeds.reads if speeds.is_known else speeds.least_reads
            if tokens > floor * waited:  # otherwise the wait hides how long the prompt was read
                self.note_reading(tokens, max(request.read_seconds / 2, request.read_seconds - waited), now)
        if answer_tokens is None or (written_ms is None and not request.is_streamed):
            return
        seconds = now - request.began_at if written_ms is None else written_ms / 1000
        speeds.note_writing(answer_tokens - 1, seconds, (request.streams + self.writing + 1) / 2)

    def note_reading(self, tokens: float, seconds: float, now: float) -> None:
        """Learn from a prompt of which the backend has read ``tokens`` in ``seconds``."""
        self.speeds.note_reading(tokens, seconds)
        self._read_at = now

    def reading_slowness(self, usual: float, now: float) -> float | None:
        """See :meth:`Speeds.reading_slowness`; ``None`` as well if the speed was last measured a while ago.

        A backend that seems slow gets few prompts, perhaps none that shows its speed. It counts as usual after a while,
        so that new prompts show whether it is still slow.
        """
        return self.speeds.reading_slowness(usual) if now - self._read_at < _VALID_SECONDS else None

    def wants_facts(self, now: float) -> bool:
        """Whether the reply that has just ended should be parsed for its facts."""
        if now - self._facts_at < _FACTS_SECONDS:
            return False
        self._facts_at = now
        return True

    def drop(self, request: PendingRequest) -> None:
        """Remove a request that was not delivered, or whose client has left."""
        if request.slot is not None:
            self.contents.release(request.slot)
        if request in self._reading:
            del self._reading[request]
            self.unread -= request.unread
        else:
            self._assumed_read.discard(request)
            self.writing -= 1

    def _has_read(self, request: PendingRequest, now: float) -> None:
        del self._reading[request]
        self.unread = self.unread - request.unread if self._reading else 0.0
        self._reading_since = max(self._reading_since, now)
        self._busy_tokens += request.unread
        self.writing += 1
        request.began_at = now
        request.streams = self.writing


def compare(works: Sequence[PendingWork], now: float) -> None:
    """Set the speeds that routing uses: the fleet's median, scaled for a backend that is clearly slower or faster.

    Small differences between similar machines are chance: a backend's reading speed is based on a few recent requests,
    and its writing speed on answers at about the same concurrency. Such noise would outweigh differences in load.
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
        reading, writing = work.reading_slowness(reads, now), work.speeds.writing_slowness(step, stream)
        # A machine whose reading or writing was not measured is as slow at it as at the other.
        work.reads = reads / (reading or writing or 1.0)
        work.step_seconds = (writing or reading or 1.0) * step
        work.stream_seconds = (writing or reading or 1.0) * stream
