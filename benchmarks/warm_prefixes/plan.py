"""The clients' requests and their order, generated from a seed and identical for every proxy."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from support.tiny_gguf import whole_words

__all__ = [
    "ANSWER_TOKENS",
    "GROUPS",
    "MODEL",
    "SLOTS",
    "WORKLOADS",
    "Conversation",
    "Outage",
    "Plan",
    "Workload",
    "plan_of",
]

GROUPS = 4  # of conversations
SLOTS = 2  # of an engine
ANSWER_TOKENS = 24
MODEL = "m"  # smg rejects requests for a model that no engine lists
_SYSTEM_WORDS = 2_000
_TURNS = 4
_QUESTION_WORDS = (60, 180)
_SHORT_WORDS = (20, 80)
_WORDS = whole_words()


@dataclass(frozen=True, slots=True)
class Outage:
    """One engine is killed and restarted with an empty cache.

    Attributes:
        begin, end: as fractions of all requests answered, so that slow and fast proxies have done the same work.
    """

    engine: int = 0
    begin: float = 0.25
    end: float = 0.5


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of traffic.

    Attributes:
        groups: number of conversations for each system prompt.
        short_share: fraction of requests that are short and share no prefix.
    """

    about: str
    groups: tuple[int, ...] = (6, 6, 6, 6)
    short_share: float = 0.0
    outage: Outage | None = None


WORKLOADS = {
    "groups": Workload("24 conversations of 4 turns, in 4 groups that share a system prompt of 2,000 tokens each"),
    "mixed": Workload("as groups, and 30 % of all requests are short ones that share nothing", short_share=0.3),
    "skewed": Workload("as groups, but 17 of the 24 conversations are in one group", groups=(17, 3, 2, 2)),
    "killed": Workload(
        "as groups; one engine is killed after a quarter of the requests, and comes back cold after half of them",
        outage=Outage(),
    ),
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation of one client: a question, its answer, the next question, and so on.

    Attributes:
        group: number of its system prompt; ``None`` for a short request without one.
    """

    number: int
    group: int | None
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run's requests.

    Attributes:
        systems: the system prompt of each group.
        conversations: in the order in which they begin; each client has one at a time.
    """

    systems: tuple[str, ...]
    conversations: tuple[Conversation, ...]
    outage: Outage | None

    @property
    def requests(self) -> int:
        return sum(len(conversation.questions) for conversation in self.conversations)

    @property
    def system_tokens(self) -> int:
        """Tokens of one system prompt, without those of the chat template."""
        return _SYSTEM_WORDS


def plan_of(workload: Workload, seed: int) -> Plan:
    """Generate a plan; plans with different seeds share no prompt."""
    random = Random(seed)
    systems = tuple(_text(random, _SYSTEM_WORDS) for _ in workload.groups)
    groups: list[int | None] = [group for group, size in enumerate(workload.groups) for _ in range(size)]
    groups += [None] * round(len(groups) * _TURNS * workload.short_share / (1 - workload.short_share))
    random.shuffle(groups)
    conversations = (Conversation(number, group, _questions(random, group)) for number, group in enumerate(groups))
    return Plan(systems, tuple(conversations), workload.outage)


def _questions(random: Random, group: int | None) -> tuple[str, ...]:
    if group is None:
        return (_text(random, random.randint(*_SHORT_WORDS)),)
    return tuple(_text(random, random.randint(*_QUESTION_WORDS)) for _ in range(_TURNS))


def _text(random: Random, words: int) -> str:
    return " ".join(random.choices(_WORDS, k=words))
