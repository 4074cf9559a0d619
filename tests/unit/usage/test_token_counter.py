"""Tokens of a request, from recorded replies with their chunk framing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from inference_engine_proxy_server.errors import BackendBroke
from inference_engine_proxy_server.requests.destinations import IN_A_SLOT, Destination
from inference_engine_proxy_server.usage.token_counter import TokenCounter
from inference_engine_proxy_server.usage.tokens import TokenUse
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.request_head import parse_request_head
from unit.wire.test_exchange import EVENTS, LIMITS, Connection

FOLDER = Path(recorded.__file__).parent
JSON = b"content-type: application/json\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'


class Backend:
    """A source that never has to wait."""

    is_unanswered = False

    def comment_sent(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Counted:
    """A request with this body, whose tokens are counted."""

    def __init__(
        self, body: bytes = b"", version: bytes = b"1.1", fields: bytes = b"", path: bytes = b"/v1/chat/completions"
    ) -> None:
        line = b"POST %b HTTP/%b\r\nHost: a\r\n" % (path, version)
        head = parse_request_head(line + fields, LIMITS)
        self.exchange = Exchange(Connection(), head, body, "id-1", "1.2.3.4:5")
        head.destination = Destination.WORK
        self._counter = TokenCounter.of(self.exchange)
        self.exchange.source = Backend()

    def stream(self, blocks: Sequence[bytes], fields: bytes = EVENTS) -> Counted:
        """Send the body in these pieces, without its end."""
        self.exchange.begin(200, b"", fields, None)
        for block in blocks:
            self.exchange.write(block)
        return self

    def used(self) -> TokenUse:
        """The counted tokens."""
        self.exchange.end()
        return self._counter.used

    def tokens(self) -> int:
        """Those of prompt and answer together."""
        return self.used().total


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
    assert Counted(prompt(prompt_bytes)).stream([body_of(name)]).tokens() == tokens


@pytest.mark.parametrize(("name", "tokens"), RECORDED)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100])
def test_reported_tokens_count_wherever_the_reply_is_cut(
    name: str, tokens: int, piece_bytes: int, version: bytes
) -> None:
    assert Counted(version=version).stream(pieces_of(body_of(name), piece_bytes)).tokens() == tokens


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
    assert Counted(prompt(40)).stream(blocks, JSON).tokens() == 2900


def test_reported_tokens_count_before_many_more_events() -> None:
    usage = b'data: {"usage":{"prompt_tokens":20,"completion_tokens":3}}\n\n'
    blocks = [*[TOKEN % b"x"] * 3000, usage, *[b": ping\n\n"] * 20_000]
    assert Counted().stream(blocks).tokens() == 23


def test_the_prompt_that_the_beginning_of_a_long_stream_reports_counts() -> None:
    start = b'data: {"message":{"usage":{"input_tokens":20,"output_tokens":1}}}\n\n'
    end = b'data: {"type":"message_delta","usage":{"output_tokens":5000}}\n\n'
    assert Counted(prompt(4000)).stream([start, *[TOKEN % b"x"] * 5000, end]).tokens() == 20 + 5000


@pytest.mark.parametrize("count", [1, 20])
def test_a_property_named_usage_in_a_tools_schema_is_no_report(count: int) -> None:
    tools = b'{"properties":{"usage":{"type":"string"}}},' * count
    reply = b'{"usage":{"input_tokens":20,"output_tokens":3},"tools":[%b{}]}' % tools[: 5 * 43]
    assert Counted(prompt(4000)).stream([reply], JSON).tokens() == 23


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
    assert tokens * 0.6 <= Counted(prompt(prompt_bytes)).stream([body]).tokens() <= tokens * 2.5


def test_events_count_as_tokens_in_a_stream_of_any_length() -> None:
    events = [TOKEN % (b"x" * (number % 9)) for number in range(5000)]
    assert Counted(prompt(40)).stream(events).tokens() == 10 + 5000


def test_a_broken_stream_counts_the_prompt_and_what_was_sent() -> None:
    body = body_of("llama-server/v1-messages-stream-raw")
    counted = Counted(prompt(10**6)).stream([body[: body.index(b"event: content_block_stop")]])
    counted.exchange.client_left()
    assert 21 + 5 + 5 <= counted.tokens() <= 21 + 5 + 12


def test_a_client_that_leaves_before_the_reply_pays_for_its_prompt() -> None:
    counted = Counted(prompt(40_000))
    counted.exchange.client_left()
    assert counted.tokens() == 10_000


def test_a_client_that_leaves_an_anthropic_stream_pays_for_the_events_it_got() -> None:
    start = b'data: {"message":{"usage":{"input_tokens":20,"output_tokens":1}}}\n\n'
    counted = Counted(prompt(4000)).stream([start, *[TOKEN % b"x"] * 500])
    counted.exchange.client_left()
    assert counted.tokens() == 20 + 501


def test_a_client_that_leaves_the_queue_pays_nothing() -> None:
    counted = Counted(prompt(40_000))
    counted.exchange.source = None
    counted.exchange.send_comment(b": queued\n\n")
    counted.exchange.client_left()
    assert counted.tokens() == 0


def test_a_picture_is_not_counted_by_its_bytes_when_the_client_leaves() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100_000}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    counted = Counted(json.dumps({"messages": [{"role": "user", "content": content}]}).encode())
    counted.exchange.client_left()
    assert 0 < counted.tokens() < 10_000


def test_the_files_of_a_form_are_not_counted_by_their_bytes() -> None:
    counted = Counted(b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + b"x" * 10**6 + b"\r\n--b--\r\n")
    counted.exchange.client_left()
    assert counted.tokens() == 0


def test_a_refused_request_is_not_counted() -> None:
    counted = Counted(prompt(40_000))
    counted.exchange.respond(503, b"", b"{}")
    assert counted.tokens() == 0


def test_a_request_whose_tokens_count_does_not_ask_for_compression() -> None:
    counted = Counted(fields=b"Accept-Encoding: gzip, br\r\nX-Accept-Encoding: gzip\r\naccept: */*\r\n")
    assert counted.exchange.head.passed_on == b"X-Accept-Encoding: gzip\r\naccept: */*\r\n"


def test_an_embedding_counts_its_prompt_alone() -> None:
    reply = {"data": [{"embedding": [0.25] * 5000}], "usage": {"prompt_tokens": 7}}
    assert Counted(prompt(400)).stream([json.dumps(reply).encode()], JSON).tokens() == 7


def test_generated_text_that_looks_like_usage_is_ignored() -> None:
    said = b'{"choices":[{"message":{"content":"{\\"usage\\":{\\"total_tokens\\": 0}}"}}]}'
    assert Counted(prompt(400)).stream([said], JSON).tokens() > 100


@given(body=st.binary(max_size=300), blocks=st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_any_reply_gives_a_number_of_tokens(body: bytes, blocks: list[bytes]) -> None:
    assert Counted(body).stream(blocks).tokens() >= 0


# --- what is an estimate, and what is cached


@pytest.mark.parametrize(("name", "tokens"), RECORDED)
def test_reported_tokens_are_no_estimate(name: str, tokens: int) -> None:
    assert not Counted(prompt(400)).stream([body_of(name)]).used().is_estimate, tokens


@pytest.mark.parametrize("name", ["vllm/chat-stream-raw", "vllm/completions-stream-raw"])
def test_tokens_of_a_stream_without_a_report_are_an_estimate(name: str) -> None:
    assert Counted(prompt(400)).stream([body_of(name)]).used().is_estimate


def test_tokens_of_a_broken_stream_are_an_estimate_even_if_the_engine_reports_some() -> None:
    body = body_of("llama-server/v1-messages-stream-raw")
    counted = Counted(prompt(400)).stream([body[: body.index(b"event: content_block_stop")]])
    counted.exchange.client_left()
    assert counted.used().is_estimate


def test_tokens_are_no_estimate_if_the_client_leaves_after_the_last_event() -> None:
    counted = Counted(prompt(400)).stream([body_of("llama-server/chat-stream-raw")])
    counted.exchange.client_left()
    assert counted.used() == TokenUse(30, 25, 24, is_estimate=False)


def test_what_a_client_got_of_a_stream_counts_although_the_backend_broke_it() -> None:
    counted = Counted(prompt(400)).stream([TOKEN % b"x"] * 7)
    counted.exchange.source = None  # as after a failed attempt
    counted.exchange.fail(BackendBroke("It broke."))
    assert counted.used() == TokenUse(100, 0, 7, is_estimate=True)


@pytest.mark.parametrize(
    ("name", "cached"),
    [
        ("llama-server/chat-nonstream-2nd-cached", 25),
        ("llama-server/chat-stream-usage-raw", 25),
        ("llama-server/chat-stream-raw", 25),
        ("llama-server/v1-messages-stream-raw", 21),
        ("vllm/chat-nonstream", 0),
    ],
)
def test_cached_tokens_are_part_of_the_input(name: str, cached: int) -> None:
    used = Counted(prompt(400)).stream([body_of(name)]).used()
    assert (used.cached_tokens, used.input_tokens >= cached) == (cached, True)


OLLAMA = (
    '{"model":"llama3.2","created_at":"2026-11-01T00:00:00Z","response":"","done":true,"context":[1,2,3],'
    '"total_duration":10706818083,"load_duration":6338219291,"prompt_eval_count":26,"prompt_eval_duration":130079000,'
    '"eval_count":259,"eval_duration":4232710000}\n'
)


@pytest.mark.parametrize("before", [0, 300])
@pytest.mark.parametrize("piece_bytes", [7, 10**6])
def test_tokens_that_ollama_reports_in_its_last_object_count(before: int, piece_bytes: int) -> None:
    word = '{"model":"llama3.2","response":" \\"eval_count\\":9","done":false}\n'
    blocks = pieces_of((word * before + OLLAMA).encode(), piece_bytes)
    used = Counted(prompt(400)).stream(blocks, b"content-type: application/x-ndjson\r\n").used()
    assert used == TokenUse(26, 0, 259, is_estimate=False)


def test_tokens_of_an_ollama_embedding_count() -> None:
    reply = (
        b'{"model":"all-minilm","embeddings":[[0.5,0.25]],"total_duration":1,"load_duration":1,"prompt_eval_count":8}'
    )
    assert Counted(prompt(400)).stream([reply], JSON).used() == TokenUse(8, 0, 0, is_estimate=False)


@pytest.mark.parametrize("destination", [one for one in Destination if one not in IN_A_SLOT])
def test_a_request_that_takes_no_slot_uses_no_tokens(destination: Destination) -> None:
    counted = Counted(prompt(400))
    counted.exchange.head.destination = destination
    assert counted.stream([body_of("llama-server/chat-nonstream")], JSON).tokens() == 0


def test_all_observers_of_a_request_share_one_counter() -> None:
    exchange = Counted().exchange
    assert TokenCounter.of(exchange) is TokenCounter.of(exchange)


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        (b"/v1/images/generations", b'{"data":[{"b64_json":"%b"}]}' % (b"iVBORw0K" * 100_000)),
        (b"/v1/audio/speech", bytes(500_000)),
        (b"/v1/audio/speech", b'data: {"type":"speech.audio.delta","audio":"AAAA"}\n\n' * 1000),
        (b"/embedding", b'[{"index":0,"embedding":[%b]}]' % b",".join([b"0.123456789"] * 4096)),
        (b"/rerank", b'[{"index":0,"score":0.5}]'),
    ],
)
def test_pictures_sounds_vectors_and_scores_are_no_tokens_of_an_answer(path: bytes, reply: bytes) -> None:
    counted = Counted(b'{"input": "%b"}' % (b"word" * 100), path=path).stream([reply], JSON)
    assert counted.used() == TokenUse(100, 0, 0, is_estimate=True)


def test_tokens_that_an_engine_reports_for_a_picture_count() -> None:
    reply = b'{"data":[],"usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50}}'
    assert Counted(path=b"/v1/images/generations").stream([reply], JSON).used() == TokenUse(50, 0, 50, False)
