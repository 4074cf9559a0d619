"""Ownership of backend-local resources: a key may use only what it created.

A worker remembers the owners of the resources that were created through it, and asks its siblings, and the state that
replicas share, about others. A resource whose owner is unknown (the proxy was restarted, or another replica that shares
no state served its creation) belongs to no key. If
there are several keys, none of them may use it. If there is only one key, it may.

Engines and servers in front of them may read a path in several ways: percent-decoded, or with dot segments removed. A
request that any of these readings lets reach another resource is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.processes.siblings import Answers, Siblings
from inference_engine_proxy_server.requests.content import all_members, read_texts
from inference_engine_proxy_server.requests.destinations import Destination, is_named, is_response
from inference_engine_proxy_server.requests.headers import conversation_ids
from inference_engine_proxy_server.requests.path_policy import readings
from inference_engine_proxy_server.requests.resource_names import name_in_content, names_in_target, stream_name
from inference_engine_proxy_server.routing.affinity import AffinityTable

__all__ = ["Ownership"]

_OWNER = "owner"
_LISTS = frozenset({"/v1/chat/completions", "/chat/completions", "/v1/responses", "/responses"})


class Ownership:
    """Rejects requests for the resources of other keys.

    Args:
        table: remembers the owners.
        siblings: the other workers.

    Attributes:
        table: as given.
    """

    def __init__(self, table: AffinityTable, siblings: Siblings) -> None:
        self.table = table
        self._siblings = siblings

    @property
    def answers(self) -> Answers:
        """The answers of this worker to its siblings' questions."""
        return {_OWNER: self._answer}

    async def check(self, request: ProxiedRequest, access: Access) -> None:
        """Check that ``request`` names no resource of another key.

        Raises:
            ClientError: 404, it does, or its resource is unknown; 400, engines could read its resource differently.
        """
        is_only_key = len(access.keys) <= 1
        for name, is_new in _names_in(request, is_strict=not is_only_key):
            owner = self.table.owner(name)
            if owner is None and self._siblings.others:
                owner = await self._ask_siblings(name)
            if owner is None and self.table.is_shared:
                await self.table.find(name)
                owner = self.table.owner(name)
            if owner != access.key.name and (owner is not None or not (is_new or is_only_key)):
                raise _not_found()

    async def _ask_siblings(self, name: bytes) -> str | None:
        for answer in (await self._siblings.ask(f"{_OWNER} {name.hex()}")).values():
            known = json.loads(answer or b"null")
            if known is not None:
                self.table.adopt(name, known["url"], known["owner"])
                return str(known["owner"])
        return None

    def _answer(self, name: str) -> bytes:
        entry = self.table.entry(bytes.fromhex(name))
        return b"null" if entry is None or entry.owner is None else json.dumps(entry._asdict()).encode()


def _names_in(request: ProxiedRequest, *, is_strict: bool) -> Iterator[tuple[bytes, bool]]:
    """The resources that ``request`` names, each with whether the request may be the first one that names it.

    Args:
        is_strict: reject requests that engines could read differently.
    """
    head = request.head
    paths = readings(head.path)
    if head.destination is Destination.NAMED:
        query = head.target.partition(b"?")[2]
        names = {name for path in paths for name in names_in_target(path.encode(), query)}
        if is_strict and (len(names) != 1 or None in names):
            raise _not_found()
        yield from ((name, False) for name in names if name is not None)
        return
    if is_strict and any(is_named(path) or (path != head.path and is_response(path)) for path in paths):
        raise _not_found()
    if head.method in ("GET", "HEAD") and not _LISTS.isdisjoint(paths):
        raise ClientError("Lists of stored resources are not available with API keys.", status=404, code="not_found")
    yield from _names_in_fields_and_body(request, is_strict=is_strict)


def _names_in_fields_and_body(request: ProxiedRequest, *, is_strict: bool) -> Iterator[tuple[bytes, bool]]:
    head = request.head
    if is_response(head.path):
        if is_strict and request.body and all_members(request.body) is None:
            raise ClientError("The body must be one JSON object in UTF-8.")
        previous = name_in_content(request.content)
        if previous is not None:
            yield previous, False
        elif is_strict and request.content.previous_response_id is not None:
            raise _not_found()
    elif head.path.endswith("/streams/lookup"):
        for given in (all_members(request.body) or {}).values():
            for text in read_texts(given):
                name = stream_name(text.encode(errors="surrogatepass"))
                if name is not None:
                    yield name, True  # whether an unclaimed stream exists is no secret
    given_ids = conversation_ids(head.passed_on)
    names = {stream_name(given) for given in given_ids if given}
    if len(names) > 1 or None in names:
        raise ClientError("X-Conversation-Id must be sent once, with at most 256 bytes.")
    yield from ((name, True) for name in names if name is not None)


def _not_found() -> ClientError:
    return ClientError("This key has no such resource.", status=404, code="not_found")
