"""The inputs of fair queueing for one request: its sender, its priority and its estimated size in tokens."""

from __future__ import annotations

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.requests.headers import stated_priority
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN

__all__ = ["FairShare"]

_USUAL_ANSWER_TOKENS = 256  # assumed for a request without a limit
_MOST_ANSWER_TOKENS = 131_072  # upper bound of the estimate, whatever a request sets


class FairShare:
    """Computes the inputs of fair queueing.

    Args:
        takes_priority_header: whether requests may state their priority in ``x-priority``.
    """

    def __init__(self, *, takes_priority_header: bool) -> None:
        self._takes_priority_header = takes_priority_header

    def sender(self, request: ProxiedRequest) -> str:
        """The sender of ``request``: the name of its key, or its client's address without the port."""
        access = request.access
        return f"key {access.key.name}" if access is not None else _address(request.client)

    def priority(self, request: ProxiedRequest) -> int:
        """From -100 to 100, higher goes first: the priority that ``request`` states, if allowed, or else its key's.

        A stated priority is capped by the key's.
        """
        access = request.access
        stated = stated_priority(request.head.passed_on) if self._takes_priority_header else None
        if stated is None:
            return 0 if access is None else access.key.priority
        most = 100 if access is None else access.key.priority
        return max(-100, min(stated, most))

    def tokens(self, request: ProxiedRequest, prompt: Prompt | None) -> float:
        """The estimated size of ``request``: tokens of its prompt and of its longest permitted answer.

        Args:
            prompt: the request's prompt; ``None`` if it was not read, and the body's length is used instead.
        """
        if prompt is None:
            tokens, answer = len(request.body) / USUAL_BYTES_A_TOKEN, request.content.answer_tokens
        else:
            tokens, answer = prompt.tokens, prompt.answer_tokens
        return 1 + tokens + (_USUAL_ANSWER_TOKENS if answer is None else min(answer, _MOST_ANSWER_TOKENS))


def _address(client: str) -> str:
    """A client's address without its port."""
    return client.partition(":")[0] if client.count(":") == 1 else client.partition("]")[0].lstrip("[")
