"""The tokens of one request: as its reply reports them, else estimated. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN

__all__ = ["NO_TOKENS", "TokenUse", "tokens_used"]


class TokenUse(NamedTuple):
    """The tokens of one request.

    Attributes:
        input_tokens: of the whole prompt.
        cached_tokens: the part of them that the engine had in its cache; 0 if it does not report that.
        output_tokens: of the answer.
        is_estimate: whether any of the numbers is an estimate.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_estimate: bool

    @property
    def total(self) -> int:
        """Tokens of prompt and answer together."""
        return self.input_tokens + self.output_tokens


NO_TOKENS = TokenUse(0, 0, 0, is_estimate=False)


def tokens_used(
    facts: ReplyFacts,
    *,
    prompt_estimate: Callable[[], int],
    events: int,
    sent_bytes: int,
    is_whole: bool,
    has_text: bool = True,
) -> TokenUse:
    """The tokens of a request whose reply has begun.

    What the engine does not report is estimated: the prompt from its length, the answer as one token for every event. A
    reply that reports prompt tokens but no answer tokens, and is no stream, is an embedding. The beginning of a stream
    may report an answer of one token, so a broken stream counts at least one token for every event.

    Args:
        facts: what the engine has reported.
        prompt_estimate: estimates the tokens of the prompt.
        events: the number of events in the reply.
        sent_bytes: length of the whole reply.
        is_whole: whether the answer has been sent to its end.
        has_text: whether a model may have written text in it; else it has no tokens unless the engine reports some.
    """
    prompt, answer = facts.prompt_tokens, facts.answer_tokens
    has_no_answer = answer is None and (not has_text or (prompt is not None and not events))
    is_estimate = prompt is None or (answer is None and not has_no_answer) or not is_whole
    if answer is None:
        answer = 0 if has_no_answer else events or int(sent_bytes / USUAL_BYTES_A_TOKEN)
    elif answer < events and not is_whole:
        answer = events
    if prompt is None:
        prompt = prompt_estimate()
    return TokenUse(prompt, min(facts.cached_tokens or 0, prompt), answer, is_estimate)
