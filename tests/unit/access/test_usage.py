"""Tokens of a request, from recorded replies with their chunk framing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.access.usage import UsageObserver
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.request_head import parse_request_head
from unit.wire.test_exchange import EVENTS, LIMITS, Connection

FOLDER = Path(recorded.__file__).parent
LIMIT = 10**12
JSON = b"content-type: application/json\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'


class Backend:
    """A source that never has to wait."""

    is_unanswered = False

    def comment_sent(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Charged:
    """A request with this body, from a key with a limit of tokens."""

    def __init__(self, body: bytes = b"", version: bytes = b"1.1", fields: bytes = b"") -> None:
        line = b"POST /v1/chat/completions HTTP/%b\r\nHost: a\r\n" % version
        head = parse_request_head(line + fields, LIMITS)
        self.exchange = Exchange(Connection(), head, body, "id-1", "1.2.3.4:5")
        self._allowance = Allowance(ApiKey("a", b"", tokens_per_minute=LIMIT), 0.0)
        self.exchange.observers.add(UsageObserver(self.exchange, self._allowance, lambda: 0.0))
        self.exchange.source = Backend()

    def stream(self, blocks: Sequence[bytes], fields: bytes = EVENTS) -> Charged:
        """Send the body in these pieces, without its end."""
        self.exchange.begin(200, b"", fields, None)
        for block in blocks:
            self.exchange.write(block)
        return self

    def tokens(self) -> int:
        """What the key was charged."""
        self.exchange.end()
        left = self._allowance.left(0.0)["tokens_left"]
        assert left is not None
        return LIMIT - left


def prompt(size: int) -> bytes:
    """A request whose prompt has this number of bytes."""
    return json.dumps({"prompt": "x" * (size - 1)}).encode()


def body_of(name: str) -> bytes:
    """The body of a recorded reply, without chunk framing."""
    head, _, body = (FOLDER / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    pieces = []
    while not body.startswith(b"0\r\n"):
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(pieces)


def pieces_of(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


RECORDED = [
    ("llama-server/chat-nonstream", 30 + 24),
    ("llama-server/chat-nonstream-2nd-cached", 30 + 24),
    ("llama-server/chat-stream-usage-raw", 30 + 24),
    ("llama-server/chat-stream-raw", 25 + 5 + 24),
    ("llama-server/chat-stream-timings-progress-raw", 25 + 5 + 24),
    ("llama-server/completions", 6 + 8),
    ("llama-server/completions-stream-raw", 6 + 4),
    ("llama-server/native-completion", 1 + 5 + 4),
    ("llama-server/v1-messages", 26 + 12),
    ("llama-server/v1-messages-stream-raw", 21 + 5 + 6),
    ("llama-server/v1-responses", 26 + 6),
    ("llama-server/v1-responses-stream-raw", 26 + 4),
    ("llama-server/embeddings", 12),
    ("vllm/chat-nonstream", 38 + 12),
    ("vllm/chat-stream-usage-raw", 38 + 12),
    ("vllm/chat-stream-continuous-usage-raw", 38 + 12),
    ("vllm/completions", 3 + 5),
    ("vllm/v1-messages", 24 + 6),
    ("vllm/v1-messages-stream-raw", 24 + 4),
    ("vllm/v1-responses", 24 + 4),
    ("vllm/v1-responses-stream-raw", 24 + 4),
]


@pytest.mark.parametrize(("name", "tokens"), RECORDED)
@pytest.mark.parametrize("prompt_bytes", [2, 10**6])
def test_reported_tokens_count(name: str, tokens: int, prompt_bytes: int) -> None:
    assert Charged(prompt(prompt_bytes)).stream([body_of(name)]).tokens() == tokens


@pytest.mark.parametrize(("name", "tokens"), RECORDED)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100])
def test_reported_tokens_count_wherever_the_reply_is_cut(
    name: str, tokens: int, piece_bytes: int, version: bytes
) -> None:
    assert Charged(version=version).stream(pieces_of(body_of(name), piece_bytes)).tokens() == tokens


@pytest.mark.parametrize("piece_bytes", [100, 5000, 10**6])
@pytest.mark.parametrize("after", [0, 3000, 60_000, 300_000])
@pytest.mark.parametrize("before", [0, 3000, 60_000, 300_000])
def test_reported_tokens_count_wherever_they_stand_in_a_long_reply(before: int, after: int, piece_bytes: int) -> None:
    logprobs = [{"785": {"logprob": -1.5, "rank": 1, "decoded_token": "usage"}}]
    reply = {
        "choices": [{"text": "x" * before}],
        "usage": {"prompt_tokens": 2800, "completion_tokens": 100, "prompt_tokens_details": None},
        "prompt_logprobs": logprobs * (after // 60),
    }
    blocks = pieces_of(json.dumps(reply).encode(), piece_bytes)
    assert Charged(prompt(40)).stream(blocks, JSON).tokens() == 2900


def test_reported_tokens_count_before_many_more_events() -> None:
    usage = b'data: {"usage":{"prompt_tokens":20,"completion_tokens":3}}\n\n'
    blocks = [*[TOKEN % b"x"] * 3000, usage, *[b": ping\n\n"] * 20_000]
    assert Charged().stream(blocks).tokens() == 23


def test_the_prompt_that_the_beginning_of_a_long_stream_reports_counts() -> None:
    start = b'data: {"message":{"usage":{"input_tokens":20,"output_tokens":1}}}\n\n'
    end = b'data: {"type":"message_delta","usage":{"output_tokens":5000}}\n\n'
    assert Charged(prompt(4000)).stream([start, *[TOKEN % b"x"] * 5000, end]).tokens() == 20 + 5000


@pytest.mark.parametrize("count", [1, 20])
def test_a_property_named_usage_in_a_tools_schema_is_no_report(count: int) -> None:
    tools = b'{"properties":{"usage":{"type":"string"}}},' * count
    reply = b'{"usage":{"input_tokens":20,"output_tokens":3},"tools":[%b{}]}' % tools[: 5 * 43]
    assert Charged(prompt(4000)).stream([reply], JSON).tokens() == 23


@pytest.mark.parametrize(
    ("name", "prompt_bytes", "tokens"),
    [
        pytest.param("vllm/chat-stream-raw", 170, 38 + 12, id="chat"),
        pytest.param("vllm/completions-stream-raw", 60, 3 + 5, id="completion"),
    ],
)
def test_tokens_are_estimated_when_the_engine_reports_none(name: str, prompt_bytes: int, tokens: int) -> None:
    body = body_of(name)
    assert b"_tokens" not in body
    assert tokens * 0.6 <= Charged(prompt(prompt_bytes)).stream([body]).tokens() <= tokens * 2.5


def test_events_count_as_tokens_in_a_stream_of_any_length() -> None:
    events = [TOKEN % (b"x" * (number % 9)) for number in range(5000)]
    assert Charged(prompt(40)).stream(events).tokens() == 10 + 5000


def test_a_broken_stream_counts_the_prompt_and_what_was_sent() -> None:
    body = body_of("llama-server/v1-messages-stream-raw")
    charged = Charged(prompt(10**6)).stream([body[: body.index(b"event: content_block_stop")]])
    charged.exchange.client_left()
    assert 21 + 5 + 5 <= charged.tokens() <= 21 + 5 + 12


def test_a_client_that_leaves_before_the_reply_pays_for_its_prompt() -> None:
    charged = Charged(prompt(40_000))
    charged.exchange.client_left()
    assert charged.tokens() == 10_000


def test_a_client_that_leaves_an_anthropic_stream_pays_for_the_events_it_got() -> None:
    start = b'data: {"message":{"usage":{"input_tokens":20,"output_tokens":1}}}\n\n'
    charged = Charged(prompt(4000)).stream([start, *[TOKEN % b"x"] * 500])
    charged.exchange.client_left()
    assert charged.tokens() == 20 + 501


def test_a_client_that_leaves_the_queue_pays_nothing() -> None:
    charged = Charged(prompt(40_000))
    charged.exchange.source = None
    charged.exchange.send_comment(b": queued\n\n")
    charged.exchange.client_left()
    assert charged.tokens() == 0


def test_a_picture_is_not_charged_by_its_bytes_when_the_client_leaves() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100_000}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    charged = Charged(json.dumps({"messages": [{"role": "user", "content": content}]}).encode())
    charged.exchange.client_left()
    assert 0 < charged.tokens() < 10_000


def test_the_files_of_a_form_are_not_charged_by_their_bytes() -> None:
    charged = Charged(b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + b"x" * 10**6 + b"\r\n--b--\r\n")
    charged.exchange.client_left()
    assert charged.tokens() == 0


def test_a_refused_request_is_not_charged() -> None:
    charged = Charged(prompt(40_000))
    charged.exchange.respond(503, b"", b"{}")
    assert charged.tokens() == 0


def test_a_request_whose_tokens_count_does_not_ask_for_compression() -> None:
    charged = Charged(fields=b"Accept-Encoding: gzip, br\r\nX-Accept-Encoding: gzip\r\naccept: */*\r\n")
    assert charged.exchange.head.passed_on == b"X-Accept-Encoding: gzip\r\naccept: */*\r\n"


def test_an_embedding_counts_its_prompt_alone() -> None:
    reply = {"data": [{"embedding": [0.25] * 5000}], "usage": {"prompt_tokens": 7}}
    assert Charged(prompt(400)).stream([json.dumps(reply).encode()], JSON).tokens() == 7


def test_generated_text_that_looks_like_usage_is_ignored() -> None:
    said = b'{"choices":[{"message":{"content":"{\\"usage\\":{\\"total_tokens\\": 0}}"}}]}'
    assert Charged(prompt(400)).stream([said], JSON).tokens() > 100


@given(body=st.binary(max_size=300), blocks=st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_any_reply_gives_a_number_of_tokens(body: bytes, blocks: list[bytes]) -> None:
    assert Charged(body).stream(blocks).tokens() >= 0
