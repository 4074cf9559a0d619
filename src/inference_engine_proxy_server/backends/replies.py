"""How a backend is asked, and the forms that many engines' replies have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

__all__ = ["Get", "ModelEntry", "Reply", "UnreadableState", "decoded", "parse_models"]

ModelEntry = Mapping[str, Any]
"""One object of the ``data`` array of ``GET /v1/models``, as the engine wrote it; its ``id`` is a string."""

_Form = TypeVar("_Form")


class Reply(NamedTuple):
    """A backend's complete reply to a GET.

    Attributes:
        status: its status.
        body: without the framing of chunks.
        fields: its header lines, as received; empty where nobody needs them.
    """

    status: int
    body: bytes
    fields: bytes = b""

    def field(self, name: str) -> str:
        """The value of the first header line of this name, in whatever case; empty without one."""
        found = re.search(rb"(?im)^" + re.escape(name.encode()) + rb":[ \t]*([^\r\n]*?)[ \t]*\r?$", self.fields)
        return found[1].decode("latin-1") if found else ""


class Get(Protocol):
    """Sends a GET for a path (``"/metrics"``) to one backend, with a deadline and a size limit."""

    async def __call__(self, path: str, json_body: bytes | None = None) -> Reply:
        """Send a GET; with ``json_body``, a POST, for questions that an engine answers only so.

        Raises:
            TimeoutError: the deadline passes.
            OSError: the connection fails.
            UnreadableState: the reply is not HTTP or too large.
        """


class UnreadableState(Exception):
    """A backend reported its state in a form that its engine does not use."""


def decoded(body: bytes | None, form: type[_Form]) -> _Form | None:
    """``body`` as JSON of this form, such as a ``msgspec.Struct``; ``None`` if it has another form."""
    try:
        return None if body is None else msgspec.json.decode(body, type=form)
    except (ValueError, RecursionError):  # besides msgspec's errors: invalid UTF-8, endless nesting
        return None


def parse_models(body: bytes) -> tuple[ModelEntry, ...]:
    """The entries of an OpenAI models list that have an id.

    Raises:
        UnreadableState: ``body`` is not a JSON object with a ``data`` array of objects.
    """
    try:
        listing = msgspec.json.decode(body, type=_ModelsList)
    except (ValueError, RecursionError) as error:
        raise UnreadableState(f"GET /v1/models: {error}") from error
    return tuple(entry for entry in listing.data if isinstance(entry.get("id"), str))


class _ModelsList(msgspec.Struct):
    data: list[dict[str, Any]]
