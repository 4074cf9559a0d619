"""OpenAI's responses.

Sources: OpenAI's reference of streaming responses, read November 2026. llama.cpp ``tools/server/server-chat.cpp`` and
``server-task.cpp`` (build 11549): a request is converted to a chat completion, members like ``continue_final_message``
included; the last events of a continuation have the whole text, and come even if it has no text of its own. vLLM
``vllm/entrypoints/openai/responses/utils.py`` (0.32) continues a last message whose status is ``in_progress``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import Api
from inference_engine_proxy_server.resume.dialect import Dialect, RequestRules
from inference_engine_proxy_server.resume.dialects.responses_seam import ResponsesSeam
from inference_engine_proxy_server.resume.dialects.responses_transcript import ResponsesTranscript
from inference_engine_proxy_server.resume.events import MALFORMED, data_of
from inference_engine_proxy_server.resume.members import Members, has, reduced, value
from inference_engine_proxy_server.resume.rules import has_grammar, has_penalty, hides_reasoning, must_call_tool

__all__ = ["Responses"]

_CLIENT_ROLES = ("user", "system", "developer")
_FAILURES = ("error", "response.failed")


def _wants_logprobs(members: Members) -> bool:
    included = value(members, "include")
    named = isinstance(included, list) and "message.output_text.logprobs" in included
    return named or has("top_logprobs", "logprobs", "n_probs")(members)


def _is_structured(members: Members) -> bool:
    config = value(members, "text")
    wanted = config.get("format") if isinstance(config, dict) else None
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    return kind not in (None, "text") or has("response_format")(members) or has_grammar(members)


def _has_no_input(members: Members) -> bool:
    return not isinstance(value(members, "input"), str | list)


def _continues_a_message(members: Members) -> bool:
    items = value(members, "input")
    last = items[-1] if isinstance(items, list) and items else None
    is_open = isinstance(last, dict) and not (
        last.get("role") in _CLIENT_ROLES or last.get("type") == "function_call_output"
    )
    return is_open or has("continue_final_message")(members)


class Responses(Dialect[ResponsesTranscript]):
    """``/v1/responses``."""

    api = Api.RESPONSES
    paths = ("/v1/responses", "/responses")
    limits = ("max_output_tokens",)
    rules: ClassVar[RequestRules] = {
        "logprobs": _wants_logprobs,
        "structured_output": _is_structured,
        "tool_choice": must_call_tool,
        "penalties": has_penalty,
        "prompt_form": _has_no_input,
        "assistant_message": _continues_a_message,
        "stored_state": has("previous_response_id", "conversation", "prompt", "background", "store"),
        "hidden_reasoning": hides_reasoning,
    }

    def wants_usage(self, members: Members) -> bool:
        """The last event always has the usage, so the proxy cannot make it up."""
        del members
        return True

    def transcript(self) -> ResponsesTranscript:
        """See :meth:`Dialect.transcript`."""
        return ResponsesTranscript()

    def seam(self, transcript: ResponsesTranscript, seconds: float) -> ResponsesSeam:
        """See :meth:`Dialect.seam`."""
        return ResponsesSeam(transcript, seconds)

    def continued(self, members: Members, transcript: ResponsesTranscript) -> bytes:
        """See :meth:`Dialect.continued`: the text becomes a message in progress."""
        text = transcript.text
        if not text:
            return msgspec.json.encode(members)
        body = reduced(members, self.limits, transcript.text_events)
        asked = msgspec.json.decode(members["input"], type=str | list[Any])
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        content = [{"type": "output_text", "text": text, "annotations": []}]
        begun = {"type": "message", "role": "assistant", "status": "in_progress", "content": content}
        body["input"] = [*items, {"id": transcript.item_id, **begun}]
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
        return msgspec.json.encode(body)

    def ending(self, members: Members, transcript: ResponsesTranscript) -> bytes:
        """Nothing: a stream that lacks its last event lacks its usage, and one that has it is complete."""
        del members, transcript
        return b""

    def is_failure(self, event: bytes) -> bool:
        """See :meth:`Dialect.is_failure`. llama.cpp sends its error without a type."""
        data = data_of(event)
        if data is None:
            return False
        try:
            found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        except MALFORMED:
            return False
        if found.get("type", "error") not in _FAILURES:
            return False
        response = found.get("response")
        error = (response if isinstance(response, dict) else found).get("error") or found
        code = error.get("code") if isinstance(error, dict) else None
        return not (isinstance(code, int) and 400 <= code < 500) and not str(code).startswith("invalid")
