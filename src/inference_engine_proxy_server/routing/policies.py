"""Ways of choosing among backends that could all take a request. Pure: what they look at is handed to them.

A policy is a function of the candidates, the request, and the time; it returns whom to choose, and by what numbers.
:data:`POLICIES` has them by name; ``least_requests``, the default, is not there, since it needs neither a prompt nor a
look at each candidate (:mod:`~.balancer`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork

__all__ = [
    "POLICIES",
    "Asked",
    "Candidate",
    "Choice",
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
    def work(self) -> PendingWork:
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


class Choice(NamedTuple):
    """What a policy has found.

    Attributes:
        at: the position of the candidate to choose.
        rows: the numbers of each candidate, as :attr:`Way.terms` names them; empty for one that was not looked at.
    """

    at: int
    rows: Sequence[tuple[float, ...]]


Policy = Callable[[Sequence[Candidate], Asked, float], Choice]


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


def expected_time(candidates: Sequence[Candidate], asked: Asked, now: float) -> Choice:
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
    costs, rows = [], []
    for at, one in enumerate(candidates):
        work = one.work
        reads = work.reads
        place = _place_seconds(one, most_tokens)
        ahead = work.seconds_ahead(now) + one.foreign * unread_each / reads
        own = max(1.0, tokens - known[at]) / reads * (1 + work.reading)
        crowd = _CROWD * (work.step_seconds + work.stream_seconds * one.load)
        fill = min(0.99, work.fill_with(one.load + 1))
        memory = _FULL_SECONDS * fill / (1 - fill)
        belonging = -credit / reads if at == home else 0.0
        cost = place + ahead + own + crowd + memory + belonging
        cost = cost * one.cost if cost > 0 else cost / one.cost
        costs.append(cost)
        rows.append((known[at], place, ahead, own, crowd, memory, belonging, cost))
    least = min(costs)
    most = least + abs(least) * _NEAR + _NEAR_SECONDS
    near = [at for at, cost in enumerate(costs) if cost <= most]
    # Who got nothing for longest: so that prompts are spaced, and do not meet in the same step.
    at = near[0] if len(near) == 1 else min(near, key=lambda at: candidates[at].work.sent_at)
    return Choice(at, rows)


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
    history = prompt.history / prompt.bytes_a_token
    if not strangers:  # no rule is needed where nobody else sends anything
        return (known.index(most), _LEFT_BEHIND * history) if is_known else (-1, 0.0)
    goes_on = max(asked.goes_on, float(prompt.history > 0))
    if is_known:
        home = known.index(most)
    elif goes_on > _LIKELY:
        home = _highest(candidates, prompt.conversation_key)
    else:
        warmest = [at for at, tokens in enumerate(known) if tokens >= 0.999 * most]
        home = warmest[_highest([candidates[at] for at in warmest], prompt.conversation_key)]
    if not history:
        return home, strangers * goes_on * _AGREEMENT * prompt.tokens
    known[home] += strangers * max(0.0, history - known[home])
    return home, (_LEFT_BEHIND * is_known + strangers * _AGREEMENT) * history


def _place_seconds(one: Candidate, most_tokens: float) -> float:
    """Until it has a place: one gets free whenever an answer ends, and all are taken to be as long as this one."""
    over = one.load + 1 - one.places
    return over * one.work.seconds_of_answer(most_tokens) / one.places if over > 0 else 0.0


# --- others


def power_of_two(candidates: Sequence[Candidate], asked: Asked, now: float) -> Choice:
    """The less loaded of two that chance names (Mitzenmacher, 1996)."""
    del asked, now
    pair = random.sample(range(len(candidates)), min(2, len(candidates)))
    rows: list[tuple[float, ...]] = [()] * len(candidates)
    for at in pair:
        rows[at] = (candidates[at].load * candidates[at].cost,)
    return Choice(min(pair, key=rows.__getitem__), rows)


def round_robin(candidates: Sequence[Candidate], asked: Asked, now: float) -> Choice:
    """Who has got nothing for longest."""
    del asked
    rows = [(now - sent_at if (sent_at := one.work.sent_at) else math.inf,) for one in candidates]
    return Choice(rows.index(max(rows)), rows)


def rendezvous(candidates: Sequence[Candidate], asked: Asked, now: float) -> Choice:
    """Always the same one for a session, or else for what begins alike (Thaler and Ravishankar, 1996)."""
    del now
    weights = _weights(candidates, asked.prompt.placement_key)
    return Choice(weights.index(max(weights)), [(weight / _WORD,) for weight in weights])


class Way(NamedTuple):
    """A policy, what it needs, and what it says.

    Attributes:
        name: by which settings know it.
        policy: the function.
        terms: names of the numbers in its rows; the last one is compared, and the lowest is best.
        most_wins: the highest is.
        learns: it looks at what requests leave behind: what backends hold, where conversations are, and all of
            ``work``. If not, :class:`Asked` has but the prompt, and ``work`` but ``sent_at``.
    """

    name: str
    policy: Policy
    terms: tuple[str, ...]
    most_wins: bool = False
    learns: bool = False


_EXPECTED = ("held_tokens", "place", "before", "own", "crowd", "memory", "home", "cost")

POLICIES: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("expected_time", expected_time, _EXPECTED, learns=True),
        Way("power_of_two", power_of_two, ("load",)),
        Way("round_robin", round_robin, ("idle_seconds",), most_wins=True),
        Way("rendezvous", rendezvous, ("weight",), most_wins=True),
    )
}


def _highest(candidates: Sequence[Candidate], key: int) -> int:
    """The one that ``key`` falls to; whoever else comes or goes."""
    weights = _weights(candidates, key)
    return weights.index(max(weights))


def _weights(candidates: Sequence[Candidate], key: int) -> list[int]:
    """Of each for ``key``, whoever else is there."""
    return [_mixed(key ^ one.place_key) for one in candidates]


def _mixed(word: int) -> int:
    """Each bit of it depends on all bits of ``word`` (two rounds of Stafford's variant of MurmurHash3's end)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)
