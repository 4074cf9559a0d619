"""Ways of choosing among backends that could all take a request. Pure: what they look at is handed to them.

A policy is a function of the candidates, the request, and the time; it returns the position of the one to choose.
:data:`POLICIES` has them by name; ``least_requests``, the default, is not there, since it needs neither a prompt nor a
look at each candidate (:mod:`~.balancer`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from inference_engine_proxy_server.core.prompt import Prompt
from inference_engine_proxy_server.core.workload import Workload

__all__ = [
    "POLICIES",
    "Asked",
    "Candidate",
    "Policy",
    "Way",
    "expected_time",
    "power_of_two",
    "rendezvous",
    "round_robin",
]

_WORD = (1 << 64) - 1


class Asked(NamedTuple):
    """What a policy may know of a request.

    Attributes:
        prompt: what is to be read.
        held: how many bytes of it each backend holds that holds some, by its number.
        last_at: the number of the backend that had the last turn of the conversation; -1: nobody knows.
        goes_on: the share of requests that begin alike which go on with a conversation.
    """

    prompt: Prompt
    held: Mapping[int, int] = {}
    last_at: int = -1
    goes_on: float = 0.0


class Candidate(Protocol):
    """What a policy may know of a backend."""

    @property
    def number(self) -> int:
        """By which the index of prefixes knows it."""

    @property
    def place_key(self) -> int:
        """64 bits of its URL, the same in all replicas."""

    @property
    def work(self) -> Workload:
        """What of ours it has to do."""

    @property
    def leases(self) -> int:
        """Requests of ours that it has."""

    @property
    def foreign(self) -> float:
        """Requests of others, by what it last told."""

    @property
    def load(self) -> float:
        """All its requests."""

    @property
    def places(self) -> float:
        """How many it works on at a time; infinite: it does not tell."""

    @property
    def cost(self) -> float:
        """What one request there weighs."""


Policy = Callable[[Sequence[Candidate], Asked, float], int]


# --- expected time to the first token

# One more answer makes each later step longer, for all who wait for a first token there while it is written; and what
# makes steps longer makes answers take longer, and so more of them at a time.
_CROWD = 4.0
_FULL_SECONDS = 0.05  # what half of a memory costs; the last tenth ten times as much: nobody can begin in none
_NEAR = 0.08  # what is so near the best is as good: that much no estimate can tell
_NEAR_SECONDS = 0.002
# Of replicas that tell each other nothing. What another one has sent somewhere is known here by nothing but a rule that
# all of them follow; leaving it costs them a prompt that has to be read anew, and again wherever they look for it.
_AGREEMENT = 4.0
_LIKELY = 0.3  # that a conversation goes on
_SHARED_TRUST = 0.7  # that a shared beginning is where the rule puts it
# A conversation that moves leaves behind what nobody else can use.
_LEFT_BEHIND = 0.5


def expected_time(candidates: Sequence[Candidate], asked: Asked, now: float) -> int:
    """Where the first token comes soonest, with what that costs others: all in seconds.

    Each candidate's cost is the time until there is a place, until what came before has been read, and until this
    prompt has been read, without what is held of it; what those lose who are read at the same time; what one more
    answer costs who writes many; and what it costs that memory gets scarce.
    """
    leases = sum(one.leases for one in candidates)
    foreign = sum(one.foreign for one in candidates)
    strangers = foreign / (foreign + leases) if leases else 0.0
    unread_each = sum(one.work.unread for one in candidates) / leases if leases else 0.0
    known = _known(candidates, asked, strangers)
    home, credit = _home(candidates, asked, known, strangers)
    tokens, bound = asked.prompt.tokens, asked.prompt.answer_tokens
    most_tokens = math.inf if bound is None else bound
    costs = []
    for at, one in enumerate(candidates):
        work = one.work
        reads = work.reads
        own = max(1.0, tokens - known[at]) / reads
        ahead = work.seconds_ahead(now) + one.foreign * unread_each / reads
        fill = min(0.99, work.fill_with(one.load + 1))
        cost = (
            _place_seconds(one, most_tokens)
            + ahead
            + own * (1 + work.reading)
            + _CROWD * (work.step_seconds + work.stream_seconds * one.load)
        )
        cost += _FULL_SECONDS * fill / (1 - fill)
        if at == home:
            cost -= credit / reads
        costs.append(cost * one.cost if cost > 0 else cost / one.cost)
    least = min(costs)
    most = least + abs(least) * _NEAR + _NEAR_SECONDS
    near = [at for at, cost in enumerate(costs) if cost <= most]
    # Who got nothing for longest: so that prompts are spaced, and do not meet in the same step.
    return near[0] if len(near) == 1 else min(near, key=lambda at: candidates[at].work.sent_at)


def _known(candidates: Sequence[Candidate], asked: Asked, strangers: float) -> list[float]:
    """Tokens of the prompt that each has: as we know, or as other replicas' rule says."""
    prompt, held = asked.prompt, asked.held
    known = [held.get(one.number, 0) / prompt.bytes_a_token for one in candidates]
    if asked.last_at in held:  # it has the answer, too
        at = next((at for at, one in enumerate(candidates) if one.number == asked.last_at), None)
        if at is not None:
            known[at] = max(known[at], prompt.history / prompt.bytes_a_token)
    if strangers and prompt.shared:
        at = _highest(candidates, prompt.shared_key)
        known[at] = max(known[at], strangers * _SHARED_TRUST * prompt.shared / prompt.bytes_a_token)
    return known


def _home(candidates: Sequence[Candidate], asked: Asked, known: list[float], strangers: float) -> tuple[int, float]:
    """Where the conversation belongs, by a rule that all replicas follow, and what that is worth, in tokens.

    A conversation that is known belongs where it is. Of one that is not, or that only begins, its name decides: among
    all, if others that begin alike went on; else among those that have most of it. ``known`` is completed: if it went
    on in another replica, it went on there.
    """
    prompt = asked.prompt
    most = max(known)
    is_known = prompt.history > 0 and most * prompt.bytes_a_token > prompt.opening
    goes_on = max(asked.goes_on, float(prompt.history > 0))
    if is_known:
        home = known.index(most)
    elif strangers and goes_on > _LIKELY:
        home = _highest(candidates, prompt.conversation_key)
    else:
        warmest = [at for at, tokens in enumerate(known) if tokens >= 0.999 * most]
        home = warmest[_highest([candidates[at] for at in warmest], prompt.conversation_key)]
    history = prompt.history / prompt.bytes_a_token
    if not history:
        return home, strangers * goes_on * _AGREEMENT * prompt.tokens
    known[home] += strangers * max(0.0, history - known[home])
    return home, (_LEFT_BEHIND * is_known + strangers * _AGREEMENT) * history


def _place_seconds(one: Candidate, most_tokens: float) -> float:
    """Until it has a place: one gets free whenever an answer ends, and all are taken to be as long as this one."""
    over = one.load + 1 - one.places
    return over * one.work.seconds_of_answer(most_tokens) / one.places if over > 0 else 0.0


# --- others


def power_of_two(candidates: Sequence[Candidate], asked: Asked, now: float) -> int:
    """The less loaded of two that chance names (Mitzenmacher, 1996)."""
    del asked, now
    pair = random.sample(range(len(candidates)), min(2, len(candidates)))
    return min(pair, key=lambda at: candidates[at].load * candidates[at].cost)


def round_robin(candidates: Sequence[Candidate], asked: Asked, now: float) -> int:
    """Who has got nothing for longest."""
    del asked, now
    return min(range(len(candidates)), key=lambda at: candidates[at].work.sent_at)


def rendezvous(candidates: Sequence[Candidate], asked: Asked, now: float) -> int:
    """Always the same one for a session, or else for what begins alike (Thaler and Ravishankar, 1996)."""
    del now
    return _highest(candidates, asked.prompt.placement_key)


class Way(NamedTuple):
    """A policy, and what it needs.

    Attributes:
        policy: the function.
        learns: it looks at what requests leave behind: what backends hold, where conversations are, and all of
            ``work``. If not, :class:`Asked` has but the prompt, and ``work`` but ``sent_at``.
    """

    policy: Policy
    learns: bool = False


POLICIES: Mapping[str, Way] = {
    "expected_time": Way(expected_time, learns=True),
    "power_of_two": Way(power_of_two),
    "round_robin": Way(round_robin),
    "rendezvous": Way(rendezvous),
}


def _highest(candidates: Sequence[Candidate], key: int) -> int:
    """The one that ``key`` falls to; whoever else comes or goes."""
    weights = [_mixed(key ^ one.place_key) for one in candidates]
    return weights.index(max(weights))


def _mixed(word: int) -> int:
    """Each bit of it depends on all bits of ``word`` (two rounds of Stafford's variant of MurmurHash3's end)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)
