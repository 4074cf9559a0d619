"""Chooses by policies that look at prompts, and keeps what such policies know."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.context_fit import learn_size
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingRequest, compare
from inference_engine_proxy_server.routing.expected_time.prefix_index import Noted, PrefixIndex
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.policies import Asked, Choice, Way

__all__ = ["PromptRouter", "RequestTracker"]

_KINDS = 4096  # of beginnings
_TURNS = 32_768  # conversations whose last place is known: some 4 MB
_GAIN = 1 / 16
_MANY = 48  # candidates, of which not each is looked at
_WARM, _DRAWN = 16, 24
_POLLS = 8  # between two looks at how fast backends are beside each other: what changes is the mean of many answers


class RequestTracker:
    """A request on one backend, as far as policies learn from it. Whoever relays its reply tells what comes.

    Args:
        chooser: learns.
        backend: has it.
        errand: its work there.
        prompt: is read there.
        noted: what was thought of that.
    """

    __slots__ = ("_backend", "_chooser", "_errand", "_is_open", "_noted", "_prompt")

    def __init__(
        self, chooser: PromptRouter, backend: Backend, errand: PendingRequest, prompt: Prompt, noted: Noted
    ) -> None:
        self._chooser = chooser
        self._backend = backend
        self._errand = errand
        self._prompt = prompt
        self._noted = noted
        self._is_open = True

    def begin(self) -> None:
        """The first data of its answer is there."""
        if self._is_open:
            self._backend.work.begin(self._errand, self._chooser.clock())

    def wants_facts(self) -> bool:
        """Whether what its reply says is worth reading: many at a time say the same."""
        return self._backend.work.wants_facts(self._chooser.clock())

    def complete(self, facts: ReplyFacts | None) -> None:
        """Its answer is complete, and ended with these facts; ``None``: nobody has read them."""
        if not self._is_open:
            return
        self._is_open = False
        now, work = self._chooser.clock(), self._backend.work
        work.end(self._errand, now)
        if facts is None:
            return
        read = facts.read_tokens
        if facts.prompt_tokens is not None and facts.cached_tokens is not None:
            read = facts.prompt_tokens - facts.cached_tokens
            self._chooser.index.correct(self._noted, facts.prompt_tokens, facts.cached_tokens)
            reuse, noted = work.reuse, self._noted
            reuse.sent += facts.prompt_tokens
            reuse.predicted += facts.prompt_tokens * noted.held / max(1, noted.size)
            reuse.cached += facts.cached_tokens
        learn_size(self._chooser.token_sizes, self._prompt, facts)
        if facts.read_tokens and facts.read_ms:
            work.speeds.note_reading(facts.read_tokens, facts.read_ms / 1000)
            self._errand.read_seconds = 0.0  # the engine knows better than we
        work.learn(self._errand, now, read, facts.answer_tokens, facts.written_ms)

    def close(self) -> None:
        """Nothing more comes of it, if it is not complete."""
        if self._is_open:
            self._is_open = False
            self._backend.work.drop(self._errand)


class PromptRouter:
    """What policies need to know, beside the backends themselves.

    Args:
        policies: which one names one of several candidates, by model; others may take their place at any time.
        index: which backend holds which prompts.
        token_sizes: what is known of tokens' length.
        clock: seconds that only grow.
    """

    def __init__(
        self, policies: ModelPolicies, index: PrefixIndex, token_sizes: TokenSizes, clock: Callable[[], float]
    ) -> None:
        self.policies = policies
        self.index = index
        self.token_sizes = token_sizes
        self.clock = clock
        self._numbers = 0
        self._turns: dict[int, int] = {}
        self._usually_goes_on = 0.0
        self._polls = 0
        self._has_strangers = False
        self._goes_on: dict[int, float] = {}  # by what comes before the first question

    def best(
        self, way: Way, free: Sequence[Backend], full: Sequence[Backend], prompt: Prompt
    ) -> tuple[Sequence[Backend], Choice]:
        """Those who can have ``prompt``, and which does by ``way``; a last choice only if there are no others.

        Args:
            free: any of these, one at least.
            full: or one of these, if it holds some of it, and ``way`` knows what waiting costs.
        """
        candidates = [one for one in free if not one.is_last_choice] or list(free)
        asked = Asked(prompt)
        if way.learns:
            asked = self._asked(prompt)
            candidates += [one for one in full if one.number in asked.held and not one.is_last_choice]
            if len(candidates) > _MANY and not self._has_strangers:
                candidates = _shortlist(candidates, asked.held)
        return candidates, way.policy(candidates, asked, self.clock())

    def _asked(self, prompt: Prompt) -> Asked:
        goes_on = 0.0
        if self._has_strangers and prompt.shared:
            goes_on = self._goes_on.get(prompt.shared_key, self._usually_goes_on)
        last_at = self._turns.get(prompt.last_turn, -1) if prompt.last_turn else -1
        return Asked(prompt, self.index.held(prompt), last_at, goes_on)

    def send(self, way: Way, prompt: Prompt, backend: Backend) -> RequestTracker | None:
        """``prompt`` is about to be sent to ``backend``; ``None``: ``way`` learns nothing from it."""
        if not way.learns:
            backend.work.sent_at = self.clock()
            return None
        if self._has_strangers and prompt.shared:
            self._note_kind(prompt)
        if prompt.turn:
            self._note_turn(prompt, backend)
        noted = self.index.note(prompt, backend.number)
        unread = max(1.0, prompt.tokens - noted.held / prompt.bytes_a_token)
        errand = backend.work.send(unread, self.clock(), is_streamed=prompt.is_streamed)
        return RequestTracker(self, backend, errand, prompt, noted)

    def _note_kind(self, prompt: Prompt) -> None:
        key, known = prompt.shared_key, self._goes_on
        share = known.pop(key, self._usually_goes_on)
        known[key] = share + _GAIN * ((prompt.history > 0) - share)
        self._usually_goes_on += _GAIN * ((prompt.history > 0) - self._usually_goes_on)
        if len(known) > _KINDS:
            del known[next(iter(known))]

    def _note_turn(self, prompt: Prompt, backend: Backend) -> None:
        turns = self._turns
        turns.pop(prompt.last_turn, None)
        turns[prompt.turn] = backend.number
        if len(turns) > _TURNS:
            del turns[next(iter(turns))]

    def take_in(self, backends: Sequence[Backend]) -> None:
        """These are the fleet now."""
        # Some may have got their numbers from a chooser before this one.
        self._numbers = max([self._numbers, *(backend.number + 1 for backend in backends)])
        for backend in backends:
            if backend.number < 0:
                backend.number = self._numbers
                self._numbers += 1

    def has_told(self, backends: Sequence[Backend]) -> None:
        """One of them has told its state: a good moment for what need not be done for each request."""
        self._polls += 1
        if self._polls < min(_POLLS, len(backends)):
            return
        self._polls = 0
        compare([backend.work for backend in backends])
        self._has_strangers = any(backend.foreign for backend in backends)
        for backend in backends:
            self._expect(backend)

    def _expect(self, backend: Backend) -> None:
        if backend.memory_tokens is not None:
            model = backend.models[0]["id"] if backend.models else None  # whatever else it lists has its tokenizer
            self.index.expect(backend.number, backend.memory_tokens * self.token_sizes.of(model))

    def forget(self, backend: Backend) -> None:
        """What comes back there may hold nothing."""
        if backend.number >= 0:
            self.index.forget(backend.number)


def _shortlist(candidates: Sequence[Backend], held: Mapping[int, int]) -> list[Backend]:
    """Those that hold most of it, and enough of all others that hardly a better one is missed.

    Not for where others send requests, too: the rules by which replicas agree look at all.
    """
    warm = [one for one in candidates if one.number in held]
    if len(warm) > _WARM:
        warm = nlargest(_WARM, warm, key=lambda one: (held[one.number], -one.load))
    return [*warm, *(one for one in random.sample(candidates, _DRAWN) if one not in warm)]
