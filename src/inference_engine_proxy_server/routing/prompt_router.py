"""What policies learn from requests: cached prefixes, conversations, pending work."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest

import msgspec

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.choice import Policy, PromptView
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingRequest, compare
from inference_engine_proxy_server.routing.expected_time.prefix_index import Noted, PrefixIndex
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.tracker import learn_size

__all__ = ["PromptRouter", "RequestTracker"]

_BEGINNINGS = 4096  # beginnings of prompts for which ``_goes_on`` is remembered
_TURNS = 32_768  # conversation turns whose backend is remembered: about 4 MB
_GAIN = 1 / 16
_MOST_OF_IT = 0.9  # share of what the index knew that must be cached, if the slots that hold it are shared
_MANY = 48  # candidates; if there are more, only a shortlist is scored
_WARM, _DRAWN = 16, 24
_FOREIGN = 0.05  # mean foreign requests of the fleet: fewer are polls that saw an answer which had just ended
_POLLS = 8  # between two comparisons of the backends' speeds, which change slowly


class RequestTracker(msgspec.Struct, eq=False, gc=False):
    """Follows one request on one backend, for policies that learn.

    Attributes:
        router: learns from it.
        candidate: the backend that serves the request.
        pending: the request's pending work on that backend.
        prompt: its prompt.
        noted: what the prefix index expected when the prompt was sent.
        is_occupied: not all of that was expected to be usable, because slots that hold it were busy.
        is_open: the request has not ended.
    """

    router: PromptRouter
    candidate: Candidate
    pending: PendingRequest
    prompt: Prompt
    noted: Noted
    is_occupied: bool
    is_open: bool = True

    def begin(self) -> None:
        """The first data of the answer arrived."""
        if self.is_open:
            self.candidate.work.begin(self.pending, self.router.clock())

    def wants_facts(self) -> bool:
        """Whether the facts in the reply are worth parsing: replies that end together report the same."""
        return self.candidate.work.wants_facts(self.router.clock())

    def complete(self, facts: ReplyFacts | None) -> None:
        """The answer is complete, and reported ``facts``; ``None`` if they were not parsed."""
        if not self.is_open:
            return
        self.is_open = False
        now, work = self.router.clock(), self.candidate.work
        work.end(self.pending, now)
        if facts is None:
            return
        read = facts.read_tokens
        if facts.prompt_tokens is not None and facts.cached_tokens is not None:
            read = facts.prompt_tokens - facts.cached_tokens
            self.router.index.correct(self.noted, facts.prompt_tokens, facts.cached_tokens)
            reuse, noted = work.reuse, self.noted
            reuse.sent += facts.prompt_tokens
            reuse.predicted += facts.prompt_tokens * noted.held / max(1, noted.size)
            reuse.cached += facts.cached_tokens
            if self.is_occupied:
                share = facts.cached_tokens / max(1, facts.prompt_tokens)
                work.contents.learn(was_shared=share > _MOST_OF_IT * noted.held / noted.size)
        learn_size(self.router.token_sizes, self.prompt, facts)
        if facts.read_tokens and facts.read_ms:
            work.note_reading(facts.read_tokens, facts.read_ms / 1000, now)
            self.pending.read_seconds = 0.0  # the engine's own measurement is better
        work.learn(self.pending, now, read, facts.answer_tokens, facts.written_ms)

    def close(self) -> None:
        """The request has ended. If its answer is not complete, its pending work is dropped."""
        if self.is_open:
            self.is_open = False
            self.candidate.work.drop(self.pending)


class PromptRouter:
    """The policies, and what they know besides the candidates.

    Args:
        policies: which policy applies to which model.
        index_bytes: memory for the prefix index.
        clock: a monotonic clock, in seconds.

    Attributes:
        index: which backend holds which prompts.
        token_sizes: bytes per token, by model.
    """

    def __init__(self, policies: ModelPolicies, index_bytes: int, clock: Callable[[], float]) -> None:
        self.policies = policies
        self.index = PrefixIndex(index_bytes)
        self.token_sizes = TokenSizes()
        self.clock = clock
        self._index_bytes = index_bytes
        self._turns: dict[int, int] = {}
        self._usually_goes_on = 0.0
        self._goes_on: dict[int, float] = {}  # by the part of the prompt before the first question
        self._polls = 0
        self._has_foreign_load = False
        self._foreign = self._own = self._foreign_share = 0.0

    def set_policies(self, policies: ModelPolicies) -> None:
        """Route by ``policies`` from now on. What was learned is kept as long as one of them learns."""
        self.policies = policies
        if not policies.learn:
            self.index = PrefixIndex(self._index_bytes)
            self._turns.clear()
            self._goes_on.clear()

    def view(self, prompt: Prompt) -> PromptView:
        """What was learned about ``prompt``."""
        goes_on = 0.0
        if self._has_foreign_load and prompt.shared:
            goes_on = self._goes_on.get(prompt.shared_key, self._usually_goes_on)
        last_at = self._turns.get(prompt.last_turn, -1) if prompt.last_turn else -1
        lookup = self.index.look_up(prompt)
        return PromptView(prompt, lookup.held, last_at, goes_on, lookup, self._foreign_share)

    def shortlist(self, candidates: list[Candidate], view: PromptView) -> list[Candidate]:
        """The candidates that hold most of the prompt, and enough random others to rarely miss a better one.

        If the backends have foreign load, all candidates: replicas agree only if each of them considers all.
        """
        if len(candidates) <= _MANY or self._has_foreign_load:
            return candidates
        warm = [one for one in candidates if one.number in view.held] if view.held else []
        if len(warm) > _WARM:
            warm = nlargest(_WARM, warm, key=lambda one: (view.held[one.number], -one.load.total))
        # Drawn with replacement, because that takes a third of the time.
        return list(dict.fromkeys((*warm, *random.choices(candidates, k=_DRAWN))))

    def track(
        self, policy: Policy, prompt: Prompt, candidate: Candidate, view: PromptView | None
    ) -> RequestTracker | None:
        """Follow a request that is about to be sent; ``None`` if ``policy`` learns nothing from it.

        Args:
            policy: the request's policy.
            prompt: the request's prompt.
            candidate: the backend that gets the request.
            view: the policy's view of the request; ``None`` if it had none.
        """
        if not policy.learns:
            if policy.reads_prompts:
                candidate.work.sent_at = self.clock()
            return None
        if self._has_foreign_load and prompt.shared:
            self._count_beginning(prompt)
        if prompt.turn:
            self._remember_turn(prompt, candidate)
        lookup = None if view is None else view.lookup
        noted = self.index.record(lookup or self.index.look_up(prompt), candidate.number)
        work, slots = candidate.work, candidate.load.slots
        usable: float = noted.held
        slot = None
        had_last_turn = view is not None and view.last_at == candidate.number
        if had_last_turn or slots < math.inf:
            usable = work.usable(prompt, noted.held, slots, had_last_turn=had_last_turn)
            slot = work.contents.take(prompt.chain, slots)
        unread = max(1.0, prompt.tokens - usable / prompt.bytes_a_token)
        pending = work.send(unread, self.clock(), is_streamed=prompt.is_streamed, slot=slot)
        return RequestTracker(self, candidate, pending, prompt, noted, usable < noted.held)

    def needs_update(self, backends: int) -> bool:
        """Count a report of one of the fleet's ``backends``. Returns whether :meth:`update` should follow."""
        self._polls += 1
        if not self.policies.learn or self._polls < min(_POLLS, backends):
            return False
        self._polls = 0
        return True

    def update(self, candidates: Sequence[Candidate]) -> None:
        """Update what changes slowly, from the ``candidates`` of all backends and models."""
        compare([one.work for one in candidates], self.clock())
        foreign, own = sum(one.load.foreign for one in candidates), sum(one.load.proxy_leases for one in candidates)
        self._foreign += _GAIN * (foreign - self._foreign)
        self._own += _GAIN * (own - self._own)
        self._has_foreign_load = self._foreign > _FOREIGN
        self._foreign_share = self._foreign / (self._foreign + self._own) if self._has_foreign_load else 0.0
        self._expect_memory(candidates)

    def forget(self, candidate: Candidate) -> None:
        """Forget the cache of the backend, which may come back with an empty one."""
        self.index.forget(candidate.number)
        candidate.work.contents.forget()

    def _count_beginning(self, prompt: Prompt) -> None:
        key, known = prompt.shared_key, self._goes_on
        share = known.pop(key, self._usually_goes_on)
        known[key] = share + _GAIN * ((prompt.history > 0) - share)
        self._usually_goes_on += _GAIN * ((prompt.history > 0) - self._usually_goes_on)
        if len(known) > _BEGINNINGS:
            del known[next(iter(known))]

    def _remember_turn(self, prompt: Prompt, candidate: Candidate) -> None:
        turns = self._turns
        turns.pop(prompt.last_turn, None)
        turns[prompt.turn] = candidate.number
        if len(turns) > _TURNS:
            del turns[next(iter(turns))]

    def _expect_memory(self, candidates: Iterable[Candidate]) -> None:
        for one in candidates:
            memory_tokens, models = one.backend.memory_tokens, one.backend.serving.models
            if memory_tokens is not None:
                model = models[0]["id"] if models else None  # assumes one tokenizer for all models of a backend
                self.index.expect(one.number, memory_tokens * self.token_sizes.of(model))
