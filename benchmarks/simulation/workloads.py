"""The clients' workloads. Lengths follow published data about real traffic; nothing is downloaded.

* vLLM (Kwon et al., SOSP 2023, https://arxiv.org/abs/2309.06180): ShareGPT's turns average 161 tokens in and 338
  out, both with a long tail.
* Mooncake (Qin et al., FAST 2025, https://github.com/kvcache-ai/Mooncake): agents' requests average about 8,600 tokens
  in and 180 out, and 59 % of the input is a repeated prefix.
* llm-d's own benchmark (https://llm-d.ai/docs/guides/optimized-baseline): 150 system prompts of 6,000 tokens, questions
  of 1,200 tokens.
* BurstGPT (Wang et al., 2024, https://arxiv.org/abs/2401.17644): arrivals are far burstier than a Poisson process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from simulation.requests import Prompt, Segment, token_count
from simulation.trace import Aside, Session, Turn

__all__ = [
    "ANSWER",
    "QUESTION",
    "SHORT_ANSWER",
    "Length",
    "Texts",
    "Workload",
    "agents",
    "bursts",
    "chat",
    "geometric",
    "mixed",
    "poisson",
    "questions",
    "together",
]

Workload = Callable[[Random, float], list[Session]]

_BOUNDS = (256, 512, 1024, 2048, 4096)
_SHARE_BOUNDED = 0.4  # of requests state max_tokens
_SHARE_STREAMED = 0.8
_MOST_CONTEXT = 30_000  # tokens at which agents stop: a llama.cpp slot has 32,768


@dataclass(frozen=True, slots=True)
class Length:
    """A log-normal length in tokens: half are below ``median``; two thirds within a factor of e to the ``spread``."""

    median: float
    spread: float
    least: int
    most: int

    def draw(self, random: Random) -> int:
        """One length."""
        drawn = random.lognormvariate(math.log(self.median), self.spread)
        return max(self.least, min(self.most, round(drawn)))


QUESTION = Length(80, 1.1, 8, 4000)  # 145 on average
ANSWER = Length(220, 0.9, 4, 2000)  # 325 on average
SHORT_ANSWER = Length(120, 0.8, 4, 1000)
_TOOL_OUTPUT = Length(450, 1.1, 20, 8000)  # a test's output, a file
_TOOL_CALL = Length(110, 0.8, 16, 1500)


class Texts:
    """Generator of new texts."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._texts = 0

    def of(self, tokens: int) -> Segment:
        """A text of ``tokens`` tokens."""
        self._texts += 1
        return Segment(self._texts, tokens)

    def turn(self, pause: float, added: Prompt, answer: Length) -> Turn:
        """A turn with a new answer; some turns state ``max_tokens``."""
        tokens = answer.draw(self.random)
        bound = None
        if self.random.random() < _SHARE_BOUNDED:
            bound = next(most for most in _BOUNDS if most >= tokens)
        return Turn(pause, added, self.of(tokens), bound)

    def session(self, start: float, turns: Sequence[Turn], name: str, *, has_header: bool = False) -> Session:
        """A session, usually streamed."""
        is_streamed = self.random.random() < _SHARE_STREAMED
        return Session(start, tuple(turns), name, name if has_header else None, is_streamed)


def chat(
    sessions_a_second: float, system_tokens: int = 400, turns: float = 5.0, think_seconds: float = 12.0
) -> Workload:
    """People chatting with an assistant: each turn resends the whole conversation. Half have a session header."""

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        system = texts.of(system_tokens)
        made = []
        for number, start in enumerate(poisson(random, sessions_a_second, seconds)):
            script = []
            for turn in range(1 + geometric(random, turns - 1)):
                question = texts.of(QUESTION.draw(random))
                pause = min(90.0, random.expovariate(1 / think_seconds)) if turn else 0.0
                script.append(texts.turn(pause, (question,) if turn else (system, question), ANSWER))
            made.append(texts.session(start, script, f"chat {number}", has_header=random.random() < 0.5))
        return made

    return sessions


def questions(
    a_second: float,
    prefixes: int,
    prefix_tokens: Length,
    document_tokens: Length,
    skew: float = 1.0,
    first_share: float | None = None,
) -> Workload:
    """Single questions, each with a shared system prompt and unique documents.

    Args:
        a_second: questions per second.
        prefixes: number of system prompts.
        prefix_tokens: length of a system prompt.
        document_tokens: length of the documents, including the question.
        skew: exponent of Zipf's law for the popularity of system prompts.
        first_share: fraction of questions that use the first system prompt, overriding that law.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        shared = [texts.of(prefix_tokens.draw(random)) for _ in range(prefixes)]
        weights = [1 / rank**skew for rank in range(1, prefixes + 1)]
        if first_share is not None:
            others = sum(weights[1:])
            weights = [first_share, *((1 - first_share) * weight / others for weight in weights[1:])]
        made = []
        for number, start in enumerate(poisson(random, a_second, seconds)):
            prefix = random.choices(shared, weights)[0]
            document = texts.of(document_tokens.draw(random))
            turn = texts.turn(0.0, (prefix, document), ANSWER)
            made.append(texts.session(start, [turn], f"question {number}"))
        return made

    return sessions


def agents(tasks_a_second: float, kinds: int = 6, steps: float = 12.0, system_tokens: int = 5000) -> Workload:
    """Agents: a long prompt with tools, followed by many steps of a short tool call and its output.

    A quarter of the agents start with a plan, and two to five sub-agents work on it in parallel from the same context.
    """

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        tools = [texts.of(system_tokens) for _ in range(kinds)]
        made = []
        for number, start in enumerate(poisson(random, tasks_a_second, seconds)):
            context = (random.choice(tools), texts.of(_TOOL_OUTPUT.draw(random)))
            helpers = random.randint(2, 5) if random.random() < 0.25 else 1
            for helper in range(helpers):
                added = (*context, texts.of(30)) if helpers > 1 else context
                script = [texts.turn(0.0, added, _TOOL_CALL)]
                for _ in range(geometric(random, steps / helpers)):
                    pause = min(20.0, random.lognormvariate(0.0, 1.0))  # half of the tool calls take less than a second
                    script.append(texts.turn(pause, (texts.of(_TOOL_OUTPUT.draw(random)),), _TOOL_CALL))
                name = f"task {number} {helper}"
                made.append(texts.session(start, _fitting(script), name, has_header=number % 2 == 0))
        return made

    return sessions


def mixed(a_second: float, prompt: Length | None = None) -> Workload:
    """Requests that share nothing, from 50 to 20,000 tokens long."""
    return questions(a_second, 1, Length(1, 0.0, 1, 1), prompt or Length(700, 1.4, 50, 20_000))


def bursts(a_second: float, size: int = 64, every_seconds: float = 5.0) -> Workload:
    """``size`` requests at once every few seconds, such as from a batch job, among others."""

    def sessions(random: Random, seconds: float) -> list[Session]:
        texts = Texts(random)
        starts = [(start, 1) for start in poisson(random, a_second, seconds)]
        starts += [(start, size) for start in poisson(random, 1 / every_seconds, seconds)]
        made = []
        for number, (start, count) in enumerate(sorted(starts)):
            for one in range(count):
                prompt = (texts.of(Length(500, 0.9, 30, 6000).draw(random)),)
                turn = texts.turn(0.0, prompt, SHORT_ANSWER)
                made.append(texts.session(start, [turn], f"sender {number} {one}" if count == 1 else f"job {number}"))
        return made

    return sessions


def together(*workloads: Workload) -> Workload:
    """All workloads at once; their texts are distinct."""

    def sessions(random: Random, seconds: float) -> list[Session]:
        made = []
        for kind, workload in enumerate(workloads, start=1):
            made += [_apart(session, kind * 10**9) for session in workload(random, seconds)]
        return sorted(made, key=lambda session: session.start)

    return sessions


def _apart(session: Session, offset: int) -> Session:
    turns = tuple(
        Turn(
            turn.pause,
            _all_moved(turn.added, offset),
            _moved(turn.answer, offset),
            turn.max_tokens,
            tuple(_aside_apart(aside, offset) for aside in turn.beside),
            tuple(_aside_apart(aside, offset) for aside in turn.after),
        )
        for turn in session.turns
    )
    return Session(session.start, turns, f"{offset} {session.sender}", session.header, session.is_streamed)


def _aside_apart(aside: Aside, offset: int) -> Aside:
    return Aside(
        _all_moved(aside.prompt, offset), _moved(aside.answer, offset), aside.max_tokens, is_streamed=aside.is_streamed
    )


def _all_moved(prompt: Prompt, offset: int) -> Prompt:
    return tuple(_moved(text, offset) for text in prompt)


def _fitting(turns: Sequence[Turn]) -> list[Turn]:
    """The leading turns that fit into an engine's context."""
    tokens, fitting = 0, []
    for turn in turns:
        tokens += token_count(turn.added) + turn.answer.tokens
        if tokens > _MOST_CONTEXT:
            break
        fitting.append(turn)
    return fitting


def _moved(text: Segment, offset: int) -> Segment:
    return Segment(text.number + offset, text.tokens)


def poisson(random: Random, a_second: float, seconds: float) -> Iterator[float]:
    at = random.expovariate(a_second)
    while at < seconds:
        yield at
        at += random.expovariate(a_second)


def geometric(random: Random, mean: float) -> int:
    """0 or more, ``mean`` on average."""
    if mean <= 0:
        return 0
    return int(math.log(1 - random.random()) / math.log(mean / (1 + mean)))
