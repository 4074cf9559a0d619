"""A placement whose decisions are compared with those of a shadow policy."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.choice import Choice, Policy
from inference_engine_proxy_server.routing.conversations import Conversations
from inference_engine_proxy_server.routing.decisions import TIED
from inference_engine_proxy_server.routing.learned import LearnedSnapshot
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.routing.shadow import Shadow
from inference_engine_proxy_server.routing.tracker import Tracker

__all__ = ["WatchedPlacement"]


class WatchedPlacement(Placement):
    """A placement that lets ``shadow`` see each request, and is not influenced by it.

    Args:
        shadow: compares, and learns.
        fleet, router, conversations, options: as of :class:`Placement`.
    """

    def __init__(
        self, shadow: Shadow, fleet: Fleet, router: PromptRouter, conversations: Conversations, **options: Any
    ) -> None:
        self.shadow = shadow
        super().__init__(fleet, router, conversations, **options)
        self.set_default_model = self._set_default_of_both

    def choose(self, requirements: Requirements, excluded: Collection[Backend] = ()) -> Choice | None:
        """See :meth:`Placement.choose`. Only choices that a policy made are compared."""
        choice = super().choose(requirements, excluded)
        prompt, shadow = requirements.prompt, self.shadow
        if (
            choice is not None
            and prompt is not None
            and choice.rule is not TIED
            and choice.candidate.backend.takes_requests  # else it is a last resort
            and requirements.policy is not shadow.shadow_policy
        ):
            decision = shadow.compare(requirements, prompt, excluded, choice)
            if choice.decision is not None:
                choice.decision.shadow = decision
        return choice

    def track(self, requirements: Requirements, choice: Choice) -> Tracker | None:
        """See :meth:`Placement.track`; the shadow learns in any case."""
        tracker, prompt = super().track(requirements, choice), requirements.prompt
        if prompt is None:
            return tracker
        also = self.shadow.learn(prompt, requirements.model, choice.candidate.backend)
        return _BothTrackers(tracker, also) if tracker is not None and also is not None else tracker or also

    def token_sizes(self, policy: Policy) -> TokenSizes:
        """See :meth:`Placement.token_sizes`; those of the shadow, if only the shadow learns them."""
        return super().token_sizes(policy) if self._is_needed(policy) else self.shadow.router.token_sizes

    def needed_prompt(self, requirements: Requirements) -> Prompt | None:
        """See :meth:`Placement.needed_prompt`: a prompt that only the shadow needs must not change the queue."""
        return requirements.prompt if self._is_needed(requirements.policy) else None

    def learned(self) -> LearnedSnapshot | None:
        """See :meth:`Placement.learned`; what the shadow has learned, if the active policies learn nothing."""
        return super().learned() or self.shadow.learned()

    def _is_needed(self, policy: Policy) -> bool:
        """Whether the prompt of a request under ``policy`` would be read without a shadow, too."""
        return policy.reads_prompts or self.contexts_differ

    def _look_again(self) -> None:
        super()._look_again()
        self.reads_prompts = self.reads_every_prompt = True

    def _set_default_of_both(self, model: str | None) -> None:
        self._registry.set_default_model(model)
        self.shadow.set_default_model(model)


class _BothTrackers:
    """Two trackers of one request. Each gets what it would get without the other one."""

    __slots__ = ("_trackers", "_want_facts")

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers
        self._want_facts: tuple[bool, ...] = ()

    def begin(self) -> None:
        """The first data of the answer arrived."""
        for one in self._trackers:
            one.begin()

    def wants_facts(self) -> bool:
        """Whether one of them wants the facts in the reply."""
        self._want_facts = tuple(one.wants_facts() for one in self._trackers)
        return any(self._want_facts)

    def complete(self, facts: ReplyFacts | None) -> None:
        """The answer is complete, and reported ``facts``; ``None`` if they were not parsed."""
        for one, wants_facts in zip(self._trackers, self._want_facts, strict=True):
            one.complete(facts if wants_facts else None)

    def close(self) -> None:
        """The request is over, complete or not."""
        for one in self._trackers:
            one.close()
