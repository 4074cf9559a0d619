"""Where a request stands among others when they must wait: whose it is, how urgent, and how much work."""

from __future__ import annotations

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.requests.headers import stated_priority
from inference_engine_proxy_server.requests.json_body import read_members
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["FairShare"]

_USUAL_ANSWER_TOKENS = 256  # of a request that sets no bound
_MOST_ANSWER_TOKENS = 131_072  # no answer is longer, whatever a request sets


class FairShare:
    """Where a request stands among others when they must wait.

    Args:
        takes_priority_header: whether requests may state their priority.
    """

    def __init__(self, *, takes_priority_header: bool) -> None:
        self._takes_priority_header = takes_priority_header

    def sender(self, exchange: Exchange) -> str:
        """Whose request it is: its key's name, or its client's address without the port."""
        access: Access | None = exchange.head.access
        return f"key {access.key.name}" if access is not None else _address(exchange.client)

    def priority(self, exchange: Exchange) -> int:
        """From -100 to 100, higher goes first: its key's, or what it states where that is allowed and no more."""
        access: Access | None = exchange.head.access
        stated = stated_priority(exchange.head.passed_on) if self._takes_priority_header else None
        if stated is None:
            return 0 if access is None else access.key.priority
        most = 100 if access is None else access.key.priority
        return max(-100, min(stated, most))

    def tokens(self, exchange: Exchange, prompt: Prompt | None) -> float:
        """An estimate of the work that it is: its prompt's tokens and those that its answer may have.

        Args:
            prompt: of its body; ``None``: nobody has read it, so the body's length has to do.
        """
        if prompt is None:
            tokens, answer = len(exchange.body) / USUAL_BYTES_A_TOKEN, read_members(exchange.body).answer_tokens
        else:
            tokens, answer = prompt.tokens, prompt.answer_tokens
        return 1 + tokens + (_USUAL_ANSWER_TOKENS if answer is None else min(answer, _MOST_ANSWER_TOKENS))


def _address(client: str) -> str:
    """A client's address without its port."""
    return client.partition(":")[0] if client.count(":") == 1 else client.partition("]")[0].lstrip("[")
