"""Parses the notation of the corpus.

A message is a string, of which each character is one byte (so none is above ``\\xff``), or a list of strings and of
``{repeat: string, times: number}``, which are joined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "BadReply", "BadRequest", "OddReply", "OddRequest", "Seen", "bad_replies", "bad_requests", "odd_replies",
    "odd_requests", "settings",
]  # fmt: skip

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A request that must be refused.

    Attributes:
        name: its id.
        send: the bytes, including any that follow the request.
        statuses: possible statuses of the last reply.
        served_first: number of good requests before it, which are answered.
        ends: the client closes its sending half after it.
        waits: the client sends no more, but stays connected.
        stays_open: the connection stays open, as the request is well-formed but not allowed.
        interim: 100 Continue may precede the refusal.
        cases: numbers of the attacks that it belongs to, taken from its reason.
    """

    name: str
    send: bytes
    statuses: tuple[int, ...]
    served_first: int = 0
    ends: bool = False
    waits: bool = False
    stays_open: bool = False
    interim: bool = False
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as a backend must receive it.

    Attributes:
        fields: lines that must be present unchanged.
        absent: lower-case names of further fields that must not be present.
        never: must not occur anywhere in its bytes.
    """

    method: str
    target: bytes
    body: bytes
    fields: tuple[bytes, ...]
    absent: tuple[str, ...]
    never: bytes


@dataclass(frozen=True, slots=True)
class OddRequest:
    """Valid bytes that few clients send.

    Attributes:
        name: its id.
        send: one or more requests.
        sees: the requests that the backend must receive, in order.
        later: the body, sent after 100 Continue; empty if there is no 100 Continue.
        closes: the connection ends after the last reply.
        at_once: must be sent in one piece.
        cases: numbers of the attacks that it belongs to, taken from its reason.
    """

    name: str
    send: bytes
    sees: tuple[Seen, ...]
    later: bytes = b""
    closes: bool = False
    at_once: bool = False
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadReply:
    """A reply that must be refused.

    Attributes:
        name: its id.
        reply: the bytes.
        request_method: the method that it answers.
        outcome: ``refused``: 502 before any of it was relayed; ``broken``: 502, or a reply without a clean end;
            ``cut``: the valid part is delivered, the rest is dropped.
        body: the delivered body if ``cut``.
        later: bytes sent after the reply has been delivered.
        ends: the backend closes after it.
    """

    name: str
    reply: bytes
    outcome: str
    request_method: str = "POST"
    body: bytes = b""
    later: bytes = b""
    ends: bool = False


@dataclass(frozen=True, slots=True)
class OddReply:
    """A valid reply that few engines send.

    Attributes:
        name: its id.
        reply: the bytes.
        body, status: as the client gets them.
        request_method: the method that it answers.
        ends: the backend closes after it.
    """

    name: str
    reply: bytes
    body: bytes
    status: int
    request_method: str
    ends: bool


def as_bytes(notation: Any) -> bytes:
    """The bytes that ``notation`` describes."""
    if isinstance(notation, str):
        return notation.encode("latin-1")
    if isinstance(notation, dict):
        assert notation.keys() == {"repeat", "times"}, notation
        return as_bytes(notation["repeat"]) * int(notation["times"])
    return b"".join(map(as_bytes, notation))


def settings() -> dict[str, Any]:
    """The proxy settings with the limits that the corpus tests."""
    read: dict[str, Any] = _read("requests.yaml")["settings"]
    return read


def bad_requests() -> list[BadRequest]:
    """All entries, in the order of the file."""
    return [
        BadRequest(
            name=entry["id"],
            send=as_bytes(entry["send"]),
            statuses=tuple(entry["status"]) if isinstance(entry["status"], list) else (entry["status"],),
            cases=_cases(entry),
            **{
                name: entry[name]
                for name in ("served_first", "ends", "waits", "stays_open", "interim")
                if name in entry
            },
        )
        for entry in _entries("requests.yaml", "malformed")
    ]


def odd_requests() -> list[OddRequest]:
    """All entries, in the order of the file."""
    return [
        OddRequest(
            name=entry["id"],
            send=as_bytes(entry["send"]),
            sees=tuple(map(_seen, entry["sees"])),
            later=as_bytes(entry.get("later", "")),
            closes=entry.get("closes", False),
            at_once=entry.get("at_once", False),
            cases=_cases(entry),
        )
        for entry in _entries("requests.yaml", "valid")
    ]


def bad_replies() -> list[BadReply]:
    """All entries, in the order of the file."""
    return [
        BadReply(
            name=entry["id"],
            reply=as_bytes(entry["reply"]),
            outcome=entry["outcome"],
            request_method=entry.get("to", "POST"),
            body=as_bytes(entry.get("body", "")),
            later=as_bytes(entry.get("later", "")),
            ends=entry.get("ends", False),
        )
        for entry in _entries("replies.yaml", "malformed")
    ]


def odd_replies() -> list[OddReply]:
    """All entries, in the order of the file."""
    return [
        OddReply(
            name=entry["id"],
            reply=as_bytes(entry["reply"]),
            body=as_bytes(entry["body"]),
            status=entry.get("status", 200),
            request_method=entry.get("to", "POST"),
            ends=entry.get("ends", False),
        )
        for entry in _entries("replies.yaml", "valid")
    ]


def _seen(entry: dict[str, Any]) -> Seen:
    return Seen(
        entry["method"],
        as_bytes(entry["target"]),
        as_bytes(entry.get("body", "")),
        tuple(map(as_bytes, entry.get("fields", ()))),
        tuple(entry.get("absent", ())),
        as_bytes(entry.get("never", "")),
    )


def _cases(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(re.findall(r"\bPA\d\d\b", entry["why"]))


def _entries(file: str, part: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _read(file)[part]
    names = [entry["id"] for entry in entries]
    assert len(names) == len(set(names)), f"{file} has an id twice"
    assert all(entry["why"] for entry in entries), f"{file} has an entry without a reason"
    return entries


@cache
def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_FOLDER / file).read_text())
    return content
