"""Judges whether a request may end as it did, given the faults of the backends meanwhile. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from soak.exchange import Result
from soak.timeline import BREAKING, Timeline

__all__ = ["GOOD", "ONLY_SCRIPTED", "Verdict", "judge"]

ONLY_SCRIPTED = "soak"
"""The model that only the scripted engines serve."""

_SERVING = frozenset({"500", "slow", "no metrics"})
"""Faults that leave a backend in use: it may be suspect, but serves as a last resort."""

_OWN_STATUS = {"500": 500, "503": 503, "429": 429}
_DECLINING = frozenset(_OWN_STATUS)
"""Faults by which a backend declines requests, which then go to another one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``is_allowed``: whether the rules allow it; ``what``: how it ended and why that is allowed."""

    is_allowed: bool
    what: str


GOOD = Verdict(True, "good")


def judge(result: Result, timeline: Timeline, fleet: Iterable[str], scripted: frozenset[str]) -> Verdict:
    """Judge ``result`` of a client that stayed connected.

    Args:
        fleet: base URLs of all backends that ever exist.
        scripted: backends whose replies repeat the ``user`` of the request.
    """
    happened = timeline.during(result.began, result.ended)
    kinds_by_backend: dict[str, set[str]] = {url: set() for url in fleet}
    for one in happened:
        kinds_by_backend[one.backend].add(one.kind)
    if result.ending == "stuck":
        return Verdict(False, "no end within the longest time that a request may take")
    if result.status == 0:
        return Verdict(False, "the connection ended without a reply")
    if result.status == 200:
        return _judge_success(result, kinds_by_backend, is_scripted=result.backend in scripted)
    if result.ending != "whole":
        return Verdict(False, f"an error reply ({result.status}) that is not whole")
    if result.backend:
        return _judge_engines_own(result, kinds_by_backend[result.backend], is_scripted=result.backend in scripted)
    if result.asked is not None and result.asked.model == ONLY_SCRIPTED:
        kinds_by_backend = {url: kinds for url, kinds in kinds_by_backend.items() if url in scripted}
    return _judge_proxys_own(result, kinds_by_backend)


def _judge_success(result: Result, kinds: dict[str, set[str]], *, is_scripted: bool) -> Verdict:
    assert result.asked is not None
    fault = _mismatch(result, is_scripted=is_scripted)
    if result.ending == "whole" and fault is None:
        return GOOD
    if result.ending == "whole":
        return _judge_failure_event(result, kinds, fault or "")
    if fault is not None and fault.startswith("another request's"):
        return Verdict(False, fault)
    shape = "stream" if result.asked.stream else "reply"
    suffered = kinds.get(result.backend, set()) if result.backend else set().union(*kinds.values())
    cutting = BREAKING | {"freeze"}
    if b": resumed" in result.body or "move" in suffered:  # its end depended on other backends, which could decline it
        suffered, cutting = set().union(*kinds.values()), cutting | _DECLINING
    if suffered & cutting:
        return Verdict(True, f"{shape} visibly cut: its engine was disturbed after the first byte")
    return Verdict(False, f"{shape} of an undisturbed engine was cut")


def _judge_failure_event(result: Result, kinds: dict[str, set[str]], fault: str) -> Verdict:
    """A stream that got queue updates always has status 200; a failure is its last event."""
    del kinds
    events = result.events()
    if "x-backend" not in result.fields and events and '"error"' in events[-1]:
        return Verdict(True, "queued stream reports the failure in its last event")
    return Verdict(False, f"status 200 and a clean end, but {fault}")


def _mismatch(result: Result, *, is_scripted: bool) -> str | None:
    """The fault in the received content, if any; ``result.ending`` says whether it is complete."""
    assert result.asked is not None
    return (_mismatch_of_events if result.asked.stream else _mismatch_of_answer)(result, is_scripted)


def _mismatch_of_answer(result: Result, is_scripted: bool) -> str | None:
    assert result.asked is not None
    if result.ending != "whole":
        return None
    try:
        answer = json.loads(result.body)
    except ValueError:
        return "it is not JSON"
    if is_scripted:
        return None if answer.get("id") == result.asked.user else "another request's reply"
    return None if answer.get("choices") else "it answers nothing"


def _mismatch_of_events(result: Result, is_scripted: bool) -> str | None:
    asked, events = result.asked, result.events()
    assert asked is not None
    is_done = bool(events) and events[-1] == "[DONE]"
    if result.ending == "whole" and not is_done:
        return "its last event is missing"
    if not is_scripted and not (
        events and '"of"' in events[0]
    ):  # a reply that began in the queue does not name its backend
        return None
    read = [json.loads(event) for event in events if '"of"' in event]
    if any(event["id"] != asked.user for event in read):
        return "another request's event is in it"
    if [event["n"] for event in read] != list(range(1, len(read) + 1)):
        return "events are missing or out of order"
    if asked.model != ONLY_SCRIPTED and b": resumed" in result.body:
        return None  # a llama.cpp server, which numbers nothing, may have continued it
    return "events are missing at its end" if is_done and len(read) != asked.tokens else None


def _judge_engines_own(result: Result, suffered: set[str], *, is_scripted: bool) -> Verdict:
    if any(_OWN_STATUS.get(kind) == result.status for kind in suffered):
        how = (
            "the engine's own answer"
            if result.status == 500
            else "no other backend took it, or the retry budget was used up"
        )
        return Verdict(True, f"an engine's {result.status} relayed: {how}")
    if result.status == 404 and result.kind == "unrepeatable" and not is_scripted:
        return Verdict(True, "llama.cpp's 404 for a path that only scripted engines have, and none of them was there")
    if result.status == 503 and suffered & {"kill", "start"}:
        return Verdict(True, "an engine's 503 relayed: it was just starting")
    return Verdict(False, f"status {result.status} of an engine without an order to fail")


def _judge_proxys_own(result: Result, kinds: dict[str, set[str]]) -> Verdict:
    code, shown = result.code, f"{result.status} {result.code}"
    breaking = [url for url, suffered in kinds.items() if suffered & (BREAKING | {"freeze"})]
    serving = [url for url, suffered in kinds.items() if suffered <= _SERVING]
    some = set().union(*kinds.values())
    if code in ("queue_full", "queue_timeout"):
        return Verdict(True, f"{shown}: all slots were occupied")
    if code == "overloaded":
        return Verdict(True, f"{shown}: the proxy itself was overloaded")
    if code == "no_backend_available":
        return Verdict(not serving, f"{shown}: {'not every' if serving else 'every'} backend was out")
    if code in ("backend_disconnected", "request_moved"):
        may_repeat = result.kind != "unrepeatable"
        enough = 2 if may_repeat else 1
        why = (
            "backends failed it one after the other" if may_repeat else "backend failed it, and it may not be repeated"
        )
        # A backend that declined the request counts as well: the request goes to two backends at most.
        failing = {*breaking, *(url for url, suffered in kinds.items() if suffered & _DECLINING)}
        return Verdict(bool(breaking) and len(failing) >= enough, f"{shown}: {enough} {why}")
    if code == "invalid_backend_reply":
        return Verdict("malformed" in some, f"{shown}: such a reply is not asked for again")
    if code == "backend_timeout":
        return Verdict(bool(some & {"freeze", "slow"}), f"{shown}: what an engine is at work on is not repeated")
    return Verdict(False, shown)
