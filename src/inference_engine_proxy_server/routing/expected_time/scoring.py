"""The ``expected_time`` policy: the backend with the earliest expected first token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inference_engine_proxy_server.routing.choice import CandidateView, PromptView, Scores
from inference_engine_proxy_server.routing.rendezvous import highest

__all__ = ["TERMS", "expected_time"]

TERMS = ("held_tokens", "place", "before", "own", "crowd", "memory", "home", "tier", "cost")
"""Names of the numbers in each row."""

# One more answer lengthens each later step of the backend, for every request that waits there for its first token.
# Longer steps also lengthen answers, so that more of them run concurrently.
_CROWD = 8.0
# While an engine reads a prompt, it writes hardly anything. Requests that are running keep their slots for so much
# longer, which matters if there are few slots.
_STALL = 1.2
_SURPRISE_SECONDS = 0.1  # a prompt that takes longer to read delays no more requests: they go elsewhere
_MEMORY_SECONDS = 0.05  # cost of half-full memory; nine times as much at 90 %, as full memory starts nothing
_NEAR = 0.08  # costs this close to the lowest count as equal: no estimate is more precise
_NEAR_SECONDS = 0.002
# Replicas of the proxy do not communicate, but all assign conversations and shared beginnings to backends by the same
# rule (rendezvous hashing). This tells a replica where another one has sent a prompt. A prompt that is sent elsewhere
# is read again: there, and on the backend where the other replicas expect it.
_AGREEMENT = 4.0
_LIKELY = 0.3  # probability above which a conversation is expected to continue
_SHARED_TRUST = 0.7  # probability that a shared beginning is where the rule puts it
_LEFT_BEHIND = 0.5  # a conversation that moves leaves behind cached tokens that no other request can use


def expected_time(candidates: Sequence[CandidateView], request: PromptView, now: float) -> Scores:
    """Score by the time to the first token, plus what the request costs others, in seconds.

    The time to the first token is the wait for a free slot, the time to read earlier prompts, and the time to read the
    uncached part of this one. The costs for others are the delay of requests that wait while this prompt is read, the
    delay of concurrent answers, and a price for scarce cache memory. The home of a conversation gets a discount, and
    higher tiers a penalty.
    """
    foreign_share, unread_each = _usual(candidates, request.foreign_share)
    known = _known_tokens(candidates, request, foreign_share)
    home, credit = _home(candidates, request, known, foreign_share)
    tokens, bound = request.prompt.tokens, request.prompt.answer_tokens
    max_tokens = math.inf if bound is None else bound
    first_tier = min([one.tier_seconds for one in candidates])
    rows, costs = [], []
    for at, one in enumerate(candidates):
        work, load = one.work, one.load
        total, slots = load.leases + load.others, load.slots  # load.total, inlined
        reads, reading = work.reads, work.reading
        # A slot becomes free whenever an answer ends; all answers are assumed to be as long as this one.
        slot = (total + 1 - slots) * work.seconds_of_answer(max_tokens) / slots if total >= slots else 0.0
        ahead = work.seconds_ahead(now) if reading else 0.0
        if foreign_share:
            ahead += load.foreign * unread_each / reads
        own = max(1.0, tokens - known[at]) / reads
        # Others that wait meanwhile: those that are there now, and those that come, as many as answers end.
        coming = min(own, _SURPRISE_SECONDS) * total / work.answer_seconds
        own *= 1 + reading + coming + _STALL * total / slots
        crowd = _CROWD * (work.step_seconds + work.stream_seconds * total)
        fill = min(0.99, work.fill_with(total + 1)) if work.memory_use else 0.0
        memory = _MEMORY_SECONDS * fill / (1 - fill)
        belonging = -credit / reads if at == home else 0.0
        cost = slot + ahead + own + crowd + memory + belonging
        tier = one.tier_seconds - first_tier
        cost = (cost * one.cost if cost > 0 else cost / one.cost) + tier
        costs.append(cost)
        rows.append((known[at], slot, ahead, own, crowd, memory, belonging, tier, cost))
    return Scores(_cheapest(candidates, costs), rows)


def _usual(candidates: Sequence[CandidateView], usual_share: float) -> tuple[float, float]:
    """The foreign share of all requests, the usual one if none is ours; and the unread tokens of each of ours."""
    leases, foreign, unread = 0, 0.0, 0.0
    for one in candidates:
        load = one.load
        leases += load.leases
        foreign += load.foreign
        unread += one.work.unread
    return (foreign / (foreign + leases), unread / leases) if leases else (usual_share, 0.0)


def _cheapest(candidates: Sequence[CandidateView], costs: list[float]) -> int:
    """Among the candidates near the lowest cost, the one whose last request was sent longest ago.

    This spreads prompts over time, so that fewer of them share a step of an engine.
    """
    least = min(costs)
    most = least + abs(least) * _NEAR + _NEAR_SECONDS
    near = [at for at, cost in enumerate(costs) if cost <= most]
    if len(near) == 1:
        return near[0]
    sent_at = [candidates[at].work.sent_at for at in near]
    return near[sent_at.index(min(sent_at))]


def _known_tokens(candidates: Sequence[CandidateView], request: PromptView, foreign_share: float) -> list[float]:
    """Tokens of the prompt that each candidate can reuse, as recorded here or implied by the rule of all replicas."""
    prompt, held, last_at = request.prompt, request.held, request.last_at
    known = [0.0] * len(candidates)
    chain, bytes_a_token = prompt.chain, prompt.bytes_a_token
    is_new = not held and last_at < 0
    for at, one in enumerate(() if is_new else candidates):
        number, slots = one.number, one.load.slots
        found: float = held.get(number, 0)
        if number == last_at:
            found = one.work.usable(prompt, held.get(number, 0), slots, had_last_turn=True)
        elif found and slots < math.inf:
            found = one.work.contents.usable(chain, held[number], slots)
        known[at] = found / bytes_a_token
    if foreign_share and prompt.shared:
        at = highest(candidates, prompt.shared_key)
        known[at] = max(known[at], foreign_share * _SHARED_TRUST * prompt.shared / prompt.bytes_a_token)
    return known


def _home(
    candidates: Sequence[CandidateView], request: PromptView, known: list[float], foreign_share: float
) -> tuple[int, float]:
    """The position of the conversation's home, and its bonus in tokens; -1 and 0 if there is no home.

    ::

        a candidate holds more than the first question   home: the candidate that holds most
        else, if such conversations usually continue     home: by the hash of the first question, among all
        else                                             home: by the same hash, among those that hold most

    Without foreign load, only the first line applies: there is no replica to agree with. The bonus consists of what a
    move would leave behind (first line only), and of the value of agreement, which grows with the foreign share.

    If the conversation has a history, raises the home's entry in ``known``: a replica may have continued it there.
    """
    prompt = request.prompt
    if not prompt.history and not foreign_share:
        return -1, 0.0
    most = max(known)
    is_known = prompt.history > 0 and most * prompt.bytes_a_token > prompt.opening
    history = prompt.history / prompt.bytes_a_token
    if not foreign_share:  # a single replica needs no rule
        return (known.index(most), _LEFT_BEHIND * history) if is_known else (-1, 0.0)
    goes_on = max(request.goes_on, float(prompt.history > 0))
    if is_known:
        home = known.index(most)
    elif goes_on > _LIKELY:
        home = highest(candidates, prompt.conversation_key)
    else:
        warmest = [at for at, tokens in enumerate(known) if tokens >= 0.999 * most]
        home = warmest[highest([candidates[at] for at in warmest], prompt.conversation_key)]
    if not history:
        return home, foreign_share * goes_on * _AGREEMENT * prompt.tokens
    known[home] += foreign_share * max(0.0, history - known[home])
    return home, (_LEFT_BEHIND * is_known + foreign_share * _AGREEMENT) * history
