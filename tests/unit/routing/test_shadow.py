"""A shadow policy decides on the same requests, learns from them, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.config.fleet import ModelConfig
from inference_engine_proxy_server.dispatch.leases import Dispatcher, Lease
from inference_engine_proxy_server.dispatch.request_queue import QueueLimits, RequestQueue
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.processes.worker_fairness import SoleWorker
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.conversations import Conversations
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS, POLICIES
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.routing.shadow import Shadow
from inference_engine_proxy_server.routing.watched_placement import WatchedPlacement
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.clocked_pool import LOADING, Clock, make_pool, pass_time, publish, ready, suspend
from support.pools import Pool

PATH = "/v1/chat/completions"


class Watched:
    """A fleet of ready backends whose placement is watched by a shadow policy."""

    def __init__(
        self,
        shadow: str | None = "expected_time",
        active: str = "least_requests",
        count: int = 2,
        by_model: dict[str, str] | None = None,
        capacity: int | None = None,
    ) -> None:
        self.clock = Clock()
        self.pool: Pool = make_pool(self.clock, count, configs=[{"capacity": capacity}] * count)
        fleet = self.pool.fleet
        policies = ModelPolicies.named(active, {name: ModelConfig(own) for name, own in (by_model or {}).items()})
        arguments = fleet, PromptRouter(policies, 2**20, fleet.clock), Conversations(ConversationMemory())
        self.placement = Placement(*arguments)
        if shadow is not None:
            self.shadow = Shadow(fleet, POLICIES[shadow], 2**20)
            self.placement = WatchedPlacement(self.shadow, *arguments, records_decisions=True)
        queue = RequestQueue[Lease](QueueLimits(100, 30), Deadlines(clock=self.clock))
        self.dispatcher = Dispatcher(fleet, self.placement, queue, SoleWorker())
        for index in range(count):
            publish(self.pool, index, ready(models=["m", "n"]))

    def requirements(self, *contents: str, model: str = "m", **more: Any) -> Requirements:
        roles = ("user", "assistant") * len(contents)
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        body = json.dumps({"model": model, "messages": messages}).encode()
        policy = self.placement.policy(model)
        prompt = read_prompt(PATH.encode(), PATH, b"", body, self.placement.token_sizes(policy))
        return Requirements(model, prompt=prompt, policy=policy, **more)

    def send(self, *contents: str, at: int | None = None, **more: Any) -> Lease:
        """A request that is answered at once; ``at``: the only backend that may get it."""
        excluded = [one for index, one in enumerate(self.pool.backends) if at is not None and index != at]
        requirements = self.requirements(*contents, **more)
        lease = self.dispatcher.lease(requirements, excluded)
        assert lease is not None
        assert requirements.prompt is not None
        self.clock.now += 0.1
        if lease.tracker is not None:
            tokens = int(requirements.prompt.tokens)
            lease.tracker.begin()
            facts = (
                ReplyFacts(prompt_tokens=tokens, cached_tokens=0, answer_tokens=4)
                if lease.tracker.wants_facts()
                else None
            )
            lease.tracker.complete(facts)
        lease.close()
        return lease

    def occupy(self, backend: Backend) -> Lease:
        """A lease on ``backend``, whether or not it would be chosen."""
        candidate = next(one for one in self.placement.candidates if one.backend is backend)
        return Lease(Choice(candidate, LEAST_REQUESTS, [candidate]), self.dispatcher)

    def shown(self, lease: Lease) -> Any:
        assert lease.choice.decision is not None
        return lease.choice.decision.as_json().get("shadow")


LONG = "word " * 2000


def test_shadow_chooses_the_warm_backend_and_counts_what_it_saves() -> None:
    watched = Watched()
    warm, cold = watched.pool.backends
    watched.send(LONG, at=0)
    busy = watched.occupy(warm)  # one request more, so least_requests goes to the cold backend
    before = watched.shadow.counts.active, watched.shadow.counts.shadow
    lease = watched.send(LONG, "Well.", "And?")
    busy.close()

    counts = watched.shadow.counts
    assert (lease.backend, counts.same, counts.different) == (cold, 1, 1)
    shown = watched.shown(lease)
    assert (shown["policy"], shown["chosen"]) == ("expected_time", warm.config.name)
    assert [one["name"] for one in shown["candidates"]] == [warm.config.name, cold.config.name]
    here, there = shown["candidates"]
    assert here["held_tokens"] > 2000 > there["held_tokens"] == 0
    read = [
        after.read_tokens - sums.read_tokens for after, sums in zip((counts.active, counts.shadow), before, strict=True)
    ]
    assert read[0] > 2400 > 500 > read[1]
    seconds = [
        after.first_token_seconds - sums.first_token_seconds
        for after, sums in zip((counts.active, counts.shadow), before, strict=True)
    ]
    assert seconds[0] > seconds[1] > 0
    terms = ("place", "before", "own")
    assert seconds == [pytest.approx(sum(one[term] for term in terms), abs=1e-5) for one in (there, here)]


def choices(active: str, shadow: str | None) -> list[str]:
    """The backends of a series of requests under a policy that draws nothing at random."""
    watched = Watched(shadow, active, count=3, by_model={"n": "rendezvous"})
    found, held = [], []
    for number in range(60):
        turns = ("Well.", "And?") * (number % 3)
        lease = watched.send(f"{number % 7} {LONG}", *turns, model="n" if number % 5 == 0 else "m")
        found.append(lease.backend.url)
        if number % 4 == 0:
            held.append(watched.occupy(lease.backend))
        if len(held) > 5:
            held.pop(0).close()
        if number % 10 == 0:
            pass_time(watched.pool, watched.clock, 3)
    return found


@pytest.mark.parametrize("active", ["expected_time", "round_robin", "rendezvous"])
def test_shadow_changes_no_choice(active: str) -> None:
    without = choices(active, None)
    assert len(set(without)) > 1
    for shadow in POLICIES.keys() - {active}:
        assert choices(active, shadow) == without


def test_shadow_teaches_the_active_policies_nothing() -> None:
    watched = Watched(by_model={"n": "expected_time"})
    watched.send(LONG)
    own, shadow = watched.placement.router, watched.shadow.router
    assert (len(own.index), len(shadow.index)) == (0, 1)
    assert {one.work.sent_at for one in watched.placement.candidates} == {0.0}
    assert sum(one.work.sent_at > 0 for one in watched.shadow.candidates) == 1
    watched.send(LONG, model="n")
    assert (len(own.index), len(shadow.index)) == (1, 2)


def test_prompt_that_only_the_shadow_needs_does_not_count_in_the_queue() -> None:
    watched = Watched(by_model={"n": "rendezvous"})
    found = [watched.requirements(LONG, model=model) for model in ("m", "n")]
    assert [watched.placement.needed_prompt(one) is not None for one in found] == [False, True]


def test_shadow_learns_the_size_of_tokens() -> None:
    watched = Watched()
    for number in range(10):
        watched.send(f"{number} {LONG}")
    assert watched.shadow.router.token_sizes.fewest("m") != watched.placement.router.token_sizes.fewest("m")


def test_waiting_for_a_warm_backend_differs_from_the_default() -> None:
    watched = Watched("least_requests", "expected_time", capacity=1)
    warm, cold = watched.pool.backends
    watched.send(LONG * 8, at=0)
    watched.occupy(warm)
    lease = watched.send(LONG * 8, "Well.", "And?")  # waits there rather than have the prompt read again
    counts = watched.shadow.counts
    assert (lease.backend, watched.shown(lease)["chosen"]) == (warm, cold.config.name)
    assert counts.active.read_tokens < counts.shadow.read_tokens
    watched.occupy(cold)
    assert watched.dispatcher.lease(watched.requirements(LONG * 8, "Well.", "And?")) is None
    assert (counts.same, counts.different) == (1, 1)  # a request that waits is not compared yet


@pytest.mark.parametrize("shadow", [name for name in POLICIES if name != "least_requests"])
def test_every_policy_can_be_the_shadow(shadow: str) -> None:
    watched = Watched(shadow)
    leases = [watched.send(f"{number} {LONG}", "Well.", "And?") for number in range(8)]
    counts = watched.shadow.counts
    assert counts.same + counts.different == 8
    assert {watched.shown(lease)["policy"] for lease in leases} == {shadow}
    assert counts.active.read_tokens >= counts.shadow.read_tokens > 0


def test_shadow_of_the_default_keeps_conversations_warm() -> None:
    watched = Watched("least_requests", "round_robin")
    watched.send(LONG, at=1)
    watched.send("other", at=1)  # so that the active policy goes to the first backend
    for _ in range(6):
        lease = watched.send(LONG, "Well.", "And?", at=None)
        if watched.shown(lease)["policy"] == "kept_warm":
            break
    assert watched.shown(lease)["chosen"] == watched.pool.backends[1].config.name


def test_models_that_have_the_policy_already_are_not_compared() -> None:
    watched = Watched(by_model={"n": "expected_time"})
    lease = watched.send(LONG, model="n")
    assert (watched.shadow.counts.same, watched.shown(lease)) == (0, None)
    assert len(watched.shadow.router.index) == 1  # but learned from


def test_requests_that_only_one_backend_can_serve_are_not_compared() -> None:
    watched = Watched()
    tied = Affinity(b"response", None, watched.pool.backends[0], creates_response=False, deletes=False)
    lease = watched.send(LONG, affinity=tied)
    assert (watched.shadow.counts.same, watched.shown(lease)) == (0, None)


def test_last_resort_is_not_compared() -> None:
    watched = Watched()
    suspend(watched.pool, 0)
    publish(watched.pool, 1, LOADING)
    lease = watched.send(LONG)
    assert (watched.shadow.counts.same, watched.shown(lease)) == (0, None)


def test_shadow_follows_changes_of_the_fleet() -> None:
    watched = Watched(count=3)
    watched.send(LONG, at=0)
    gone, *rest = watched.pool.backends
    watched.pool.replace(rest)
    lease = watched.send(LONG, "Well.", "And?")
    shown = watched.shown(lease)
    assert gone.config.name not in [one["name"] for one in shown["candidates"]]
    assert {one["held_tokens"] for one in shown["candidates"]} == {0}


def test_there_is_no_shadow_without_a_prompt() -> None:
    watched = Watched()
    lease = watched.dispatcher.lease(Requirements("m"))
    assert lease is not None
    assert (watched.shown(lease), lease.tracker) == (None, None)
