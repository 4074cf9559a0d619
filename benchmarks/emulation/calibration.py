"""Measures the speeds of real engines, so that emulated ones take the same time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import linear_regression, median

from completions.answers import Answer
from emulation.client import ask
from emulation.engine import Intake
from emulation.messages import Template, text_of
from simulation.batching import Speeds
from simulation.requests import Segment

__all__ = ["TINY", "Measurements", "calibrated", "measure", "speeds_of"]

TINY = Template(begin=1, tail=2, head={"user": 6, "system": 8, "assistant": 11})
"""The chat template of ``tiny_gguf``: it has no tokens for roles, which are read letter by letter."""

_READ_TOKENS = (128, 384, 1024, 1900)  # each fits into a step
_SHORT, _LONG = 16, 3000  # contexts for writing
_WRITTEN = 64
_TOGETHER = 4  # sequences; the number of slots
_REPETITIONS = 5
_BATCH_TOKENS = 2048  # -b
_FIRST_NUMBER = 1 << 50  # of texts, so that no trace uses them
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Measurements:
    """Times of an idle engine in seconds, medians.

    Attributes:
        read: time to the first token by length of a cold prompt.
        warm_short, warm_long: the same for a cached prompt, short and long.
        write_short, write_long: time for a token of one sequence with a short and with a long context.
        write_together: the same if four short sequences are written at once.
        short, long: lengths of the short and of the long prompts.
    """

    read: dict[int, float]
    warm_short: float
    warm_long: float
    write_short: float
    write_long: float
    write_together: float
    short: int
    long: int


def speeds_of(found: Measurements) -> tuple[Speeds, Intake]:
    """The coefficients of the cost model that explain the measurements; see ``simulation.batching``."""
    per_context = max(0.0, (found.write_long - found.write_short) / (found.long - found.short))
    per_sequence = max(0.0, (found.write_together - found.write_short) / (_TOGETHER - 1) - per_context * found.short)
    fixed = max(1e-5, found.write_short - per_sequence - per_context * found.short)
    per_attended = max(0.0, 2 * _line(found.read, found.warm_short)[0])
    per_warm_token = (found.warm_long - found.warm_short) / (found.long - found.short)
    per_intake = max(0.0, per_warm_token - per_context - per_attended)
    base = found.warm_short - (per_context + per_attended + per_intake) * found.short
    per_token = max(1e-7, _line(found.read, base)[1] - per_context - per_intake)
    speeds = Speeds(fixed, per_token, per_sequence, per_context, _BATCH_TOKENS, per_attended)
    return speeds, Intake(max(0.0, base - fixed - per_token), per_intake)


def _line(read: Mapping[int, float], base: float) -> tuple[float, float]:
    """``growth`` and ``slope`` such that a cold prompt of n tokens takes ``base + (slope + growth * n) * n``."""
    slopes = {length: (seconds - base) / length for length, seconds in read.items()}
    fitted = linear_regression(list(slopes), list(slopes.values()))
    return fitted.slope, fitted.intercept


async def calibrated(ports: tuple[int, ...], model: str) -> list[Measurements]:
    """Measure all engines at the same time, as they share the machine's memory bandwidth.

    Raises:
        Failed: an engine did not answer.
    """
    return await asyncio.gather(*(measure(port, model, number) for number, port in enumerate(ports)))


async def measure(port: int, model: str, number: int) -> Measurements:
    """Measure one engine, whose cache must hold four prompts; ``number`` distinguishes its prompts from others'."""
    texts = itertools.count(_FIRST_NUMBER + number * 1_000_000)

    async def timed(text: str, tokens: int) -> tuple[Answer, float, float]:
        """The answer, the time to its first token, and the time for each later one."""
        began = time.monotonic()
        answer = await ask(port, _body(model, text, tokens), {}, _PATIENCE_SECONDS)
        ended = time.monotonic()
        return answer, answer.first_at - began, (ended - answer.first_at) / max(1, tokens - 1)

    def fresh(tokens: int) -> str:
        return text_of(Segment(next(texts), tokens))

    async def read(length: int) -> tuple[int, float]:
        done = [await timed(fresh(length), 1) for _ in range(_REPETITIONS)]
        return done[0][0].prompt_tokens, median(first for _, first, _ in done)

    async def warm(length: int) -> tuple[int, float, float]:
        text = fresh(length)
        await timed(text, 1)
        done = [await timed(text, _WRITTEN) for _ in range(_REPETITIONS)]
        return done[0][0].prompt_tokens, median(first for _, first, _ in done), median(each for *_, each in done)

    async def together() -> float:
        several = [fresh(_SHORT) for _ in range(_TOGETHER)]
        rounds = [await asyncio.gather(*(timed(text, _WRITTEN) for text in several)) for _ in range(_REPETITIONS)]
        return median(each for one in rounds[1:] for *_, each in one)  # the first round reads the prompts

    lengths = dict([await read(length) for length in _READ_TOKENS])
    short, long = await warm(_SHORT), await warm(_LONG)
    return Measurements(lengths, short[1], long[1], short[2], long[2], await together(), short[0], long[0])


def _body(model: str, text: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
