"""An emulated engine: reads prompts and writes answers of plain words when the cost model says so."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import msgspec

from emulation.api import Counts, EngineApi, Identity, Outcome
from emulation.clock import RealTime
from emulation.http_server import Exchange
from emulation.messages import ChatRequest, prompt_of, text_of
from simulation.batching import Usage
from simulation.engine_spec import EngineSpec
from simulation.requests import BYTES_A_TOKEN, Request, Segment, token_count

__all__ = ["EmulatedEngine", "Intake"]

_UNBOUNDED_ANSWER_TOKENS = 256
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Intake:
    """Seconds from a request's arrival to its place in the queue, for example for tokenizing its text."""

    fixed: float = 0.0
    per_token: float = 0.0

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens


class EmulatedEngine:
    """One engine.

    Args:
        number: distinguishes the answers of several engines.
        intake: delays each request before its place in the queue.
        tokens_an_event: number of tokens that each event of a stream has, after the first one.
    """

    def __init__(
        self, number: int, spec: EngineSpec, api: EngineApi, clock: RealTime, intake: Intake, tokens_an_event: int
    ) -> None:
        self.api = api
        self.counts = Counts()
        self.model = spec.engine(clock, tokens_an_event)
        self._clock = clock
        self._intake = intake
        self._numbers = itertools.count(number << 40)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request."""
        self._clock.catch_up()
        if (exchange.method, exchange.path) == ("POST", _CHAT):
            self._complete(exchange)
        else:
            self.api.page(exchange, self.model, self.counts)

    def _complete(self, exchange: Exchange) -> None:
        try:
            asked = msgspec.json.decode(exchange.body, type=ChatRequest)
        except msgspec.MsgspecError as error:
            return self.api.refuse_body(exchange, str(error))
        if not asked.messages:
            return self.api.refuse_body(exchange, "'messages' is required")
        if not self.api.serves(asked):
            return self.api.refuse_model(exchange, asked.model)
        prompt = prompt_of(asked.messages, self.api.template)
        room = self.api.most_context - token_count(prompt)
        if room < 1:
            return self.api.refuse_length(exchange, token_count(prompt))
        number = next(self._numbers)
        text = text_of(Segment(number, min(room, asked.answer_tokens(_UNBOUNDED_ANSWER_TOKENS))))
        # Known by its text, so that the next turn, which repeats it, has the same segment.
        answer = Segment(hash(text) & (2**63 - 1), len(text) // BYTES_A_TOKEN)
        request = Request(number, prompt, answer, asked.most_tokens, is_streamed=bool(asked.stream))
        generation = _Generation(self, exchange, asked, request, text)
        delay = self._intake.seconds(request.prompt_tokens)
        if delay:
            self._clock.at(self._clock.time() + delay, self.model.submit, request, generation)
        else:
            self.model.submit(request, generation)
        return None


class _Generation:
    """Writes one answer."""

    def __init__(
        self, engine: EmulatedEngine, exchange: Exchange, asked: ChatRequest, request: Request, text: str
    ) -> None:
        self._api = engine.api
        self._counts = engine.counts
        self._exchange = exchange
        self._asked = asked
        self._request = request
        self._text = text
        self._sent = 0  # tokens
        self._first_at = 0.0
        self._identity = Identity(
            f"chatcmpl-{request.number:016x}", int(time.time()), asked.model or engine.api.model_name
        )
        if self._api.begins_at_once:
            self._begin()

    def begun(self, cached_tokens: int) -> None:
        self._counts.cached += cached_tokens
        self._counts.read += self._request.prompt_tokens - cached_tokens
        if not self._api.begins_at_once:
            self._begin()

    def first_token(self, now: float) -> None:
        self._first_at = now
        self._counts.written += 1
        if self._asked.stream:
            for chunk in self._api.first(self._identity, self._up_to(1)):
                self._exchange.send(chunk)

    def wrote(self, tokens: int) -> None:
        if self._asked.stream and tokens > self._sent:
            self._counts.written += tokens - self._sent
            self._exchange.send(self._api.piece(self._identity, self._up_to(tokens)))

    def lost(self, now: float) -> None:
        """Not called: an emulated engine dies with its process, which breaks its connections."""

    def done(self, usage: Usage, now: float) -> None:
        counts, written_seconds = self._counts, now - self._first_at
        counts.written += usage.answer_tokens - max(1, self._sent)
        counts.read_seconds += usage.prompt_seconds
        counts.written_seconds += written_seconds
        counts.answers += 1
        counts.longest = max(counts.longest, usage.prompt_tokens + usage.answer_tokens)
        is_cut = usage.answer_tokens == self._asked.most_tokens
        outcome = Outcome(usage, written_seconds, "length" if is_cut else "stop", self._asked.includes_usage)
        if self._asked.stream:
            for chunk in self._api.last(self._identity, self._up_to(usage.answer_tokens), outcome):
                self._exchange.send(chunk)
            self._exchange.end()
        else:
            self._api.json(self._exchange, self._api.whole(self._identity, self._text, outcome))

    def _begin(self) -> None:
        if self._asked.stream:
            self._exchange.begin(self._api.stream_fields())

    def _up_to(self, tokens: int) -> str:
        """The text that has not been sent yet."""
        text = self._text[self._sent * BYTES_A_TOKEN : tokens * BYTES_A_TOKEN]
        self._sent = tokens
        return text
