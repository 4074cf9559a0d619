"""The sender, priority and size of a request determine its position in the queue."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.access.allowances import Allowance
from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.requests.prompt import Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.wire.client_side import ClientReceiver
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.request_head import parse_request_head
from support.fakes.front import LIMITS

STANDING = FairShare(takes_priority_header=True)
STRICT = FairShare(takes_priority_header=False)


class NoClient:
    """A client connection on which nothing is sent."""

    is_behind = False

    def __init__(self) -> None:
        self.clock = lambda: 0.0

    def write(self, block: bytes) -> None:
        raise AssertionError

    def comment_sent(self) -> None:
        raise AssertionError

    def exchange_done(self, exchange: Exchange) -> None:
        raise AssertionError

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        raise AssertionError


def read(body: bytes) -> Prompt:
    return read_prompt(b"/", "/", b"", body, TokenSizes())


def exchange(
    body: bytes = b"", fields: bytes = b"", *, key: ApiKey | None = None, client: str = "192.0.2.1:4711"
) -> ProxiedRequest:
    head = parse_request_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + fields, LIMITS.head)
    head.access = None if key is None else Access(key, Allowance(key, 0.0, Spending(lambda: 0.0)))
    return ProxiedRequest(NoClient(), head, body, "id", client)


def stating(priority: str) -> bytes:
    return f"X-Priority: {priority}\r\n".encode()


# --- sender


def test_sender_is_the_key() -> None:
    alice = ApiKey("alice", b"")
    first = STANDING.sender(exchange(key=alice, client="192.0.2.1:1"))
    assert first == STANDING.sender(exchange(key=alice, client="192.0.2.2:1"))
    assert first != STANDING.sender(exchange(key=ApiKey("bob", b""), client="192.0.2.1:1"))


def test_key_name_is_never_an_address() -> None:
    key = ApiKey("192.0.2.1", b"")
    assert STANDING.sender(exchange(key=key)) != STANDING.sender(exchange(client="192.0.2.1:1"))


@pytest.mark.parametrize(
    ("client", "other_connection"),
    [
        ("192.0.2.1:4711", "192.0.2.1:4712"),
        ("192.0.2.1:4711", "192.0.2.1"),  # the second one as reported by a proxy in front
        ("[2001:db8::1]:4711", "[2001:db8::1]:4712"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
    ],
)
def test_sender_without_a_key_is_the_address_without_port(client: str, other_connection: str) -> None:
    assert STANDING.sender(exchange(client=client)) == STANDING.sender(exchange(client=other_connection))


def test_different_addresses_are_different_senders() -> None:
    clients = ("192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1", "2001:db8::3", "local", "unknown")
    assert len({STANDING.sender(exchange(client=client)) for client in clients}) == len(clients)


# --- priority


def test_request_without_a_key_has_priority_0() -> None:
    assert STANDING.priority(exchange()) == 0


def test_request_has_the_priority_of_its_key() -> None:
    assert STANDING.priority(exchange(key=ApiKey("k", b"", priority=7))) == 7


@pytest.mark.parametrize(
    ("stated", "priority"),
    [("5", 5), ("-5", -5), ("100", 100), ("101", 100), ("-999", -100), ("+5", 0), ("5.5", 0), ("high", 0), ("", 0)],
)
def test_request_without_a_key_may_state_its_priority(stated: str, priority: int) -> None:
    assert STANDING.priority(exchange(fields=stating(stated))) == priority


@pytest.mark.parametrize(("stated", "priority"), [("3", 3), ("-3", -3), ("8", 7), ("x", 7)])
def test_request_may_lower_but_not_raise_the_priority_of_its_key(stated: str, priority: int) -> None:
    key = ApiKey("k", b"", priority=7)
    assert STANDING.priority(exchange(fields=stating(stated), key=key)) == priority


def test_stated_priority_counts_only_if_allowed() -> None:
    assert STRICT.priority(exchange(fields=stating("5"))) == 0
    assert STRICT.priority(exchange(fields=stating("5"), key=ApiKey("k", b"", priority=7))) == 7


def test_similar_field_name_states_no_priority() -> None:
    assert STANDING.priority(exchange(fields=b"My-X-Priority: 5\r\nX-Other: x-priority: 6\r\n")) == 0


# --- size


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"])
def test_answer_limit_counts_as_work(name: str) -> None:
    bodies = [b'{"%b": %d}' % (name.encode(), bound) for bound in (10, 90)]
    small, large = (STANDING.tokens(exchange(body), None) for body in bodies)
    assert large - small == 80
    small, large = (STANDING.tokens(exchange(), read(body)) for body in bodies)
    assert large - small == 80


def test_prompt_length_counts_as_work() -> None:
    assert STANDING.tokens(exchange(b"x" * 4000), None) - STANDING.tokens(exchange(b""), None) == 1000


def test_picture_counts_as_its_tokens_not_its_bytes() -> None:
    picture = b'{"prompt": "data:image/png;base64,' + b"iVBORw0K" * 50_000 + b'"}'
    assert STANDING.tokens(exchange(picture), None) > 100_000
    assert STANDING.tokens(exchange(picture), read(picture)) < 3_000


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b"[1]", b'{"max_tokens": "9"}', b'{"max_tokens": null}', b'{"n_predict": -1}', b'{"a": "\xff"}'],
)
def test_missing_answer_limit_counts_as_a_usual_answer(body: bytes) -> None:
    assert STANDING.tokens(exchange(body), None) == STANDING.tokens(exchange(), read(body)) == 1 + len(body) / 4 + 256


def test_huge_answer_limit_is_capped() -> None:
    huge = STANDING.tokens(exchange(b'{"max_tokens": 1' + b"0" * 400 + b"}"), None)
    assert 100_000 < huge < 200_000


@given(st.binary(max_size=200) | st.text('{}[]":,0123456789max_tokens', max_size=200).map(str.encode))
def test_any_body_has_a_size(body: bytes) -> None:
    assert STANDING.tokens(exchange(body), None) >= 1
    assert STANDING.tokens(exchange(body), read(body)) >= 1
