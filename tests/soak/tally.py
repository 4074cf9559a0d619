"""How the requests of clients that stayed connected ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from soak.engines import EngineProcess, ScriptedProcess
from soak.exchange import Result
from soak.timeline import Timeline
from soak.verdict import GOOD, ONLY_SCRIPTED, judge

__all__ = ["Tally"]

_SHOWN_LOG = 4000


class Tally:
    """Judges and counts results.

    Args:
        timeline, engines: the basis of the judgement.

    Attributes:
        counts: number of requests by ending.
        avoidable: failures although some backend could have served the request.
        forbidden: endings that break a rule.
    """

    def __init__(self, timeline: Timeline, engines: Sequence[EngineProcess]) -> None:
        self._timeline = timeline
        self._fleet = [one.url for one in engines]
        self._scripted = frozenset(one.url for one in engines if isinstance(one, ScriptedProcess))
        self._engines = {one.url: one for one in engines}
        self.counts: Counter[str] = Counter()
        self.avoidable: Counter[str] = Counter()
        self.forbidden: list[str] = []

    def take(self, result: Result) -> None:
        """Judge one result."""
        verdict = judge(result, self._timeline, self._fleet, self._scripted)
        self.counts[verdict.what] += 1
        if verdict is not GOOD and self._had_choice(result):
            self.avoidable[verdict.what] += 1
        if verdict.is_allowed:
            return
        happened = self._timeline.during(result.began, result.ended)
        faults = ", ".join(f"{self._engines[one.backend].name} {one.kind} {one.begun_at - result.began:+.1f} s to "
                           f"{one.over_at - result.began:+.1f} s" for one in happened)  # fmt: skip
        engine = self._engines.get(result.backend)
        seconds = result.ended - result.began
        request_id = result.fields.get("x-request-id", "-")
        self.forbidden.append(
            f"{result.kind}: {verdict.what}; {result.ending} after {seconds:.1f} s, {result.status} by "
            f"{engine.name if engine else 'the proxy'}, id {request_id}; meanwhile (4 s for settling included): "
            f"{faults or 'nothing'}; {result.text[-200:]!r}"
            + (f"; the engine's log ends with:\n{engine.log[-_SHOWN_LOG:]}" if engine and engine.log else "")
        )

    @property
    def good(self) -> int:
        return self.counts[GOOD.what]

    def _had_choice(self, result: Result) -> bool:
        """Whether a backend with its model was undisturbed all the time."""
        disturbed = {one.backend for one in self._timeline.during(result.began, result.ended)}
        serves_soak = result.asked is not None and result.asked.model == ONLY_SCRIPTED
        return bool((self._scripted if serves_soak else set(self._fleet)) - disturbed)
