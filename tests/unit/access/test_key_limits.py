"""Limits of keys: what a key that is limited to models may do."""

from __future__ import annotations

import json

import pytest

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.access.key_limits import KeyLimits
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.models.catalog import EMPTY
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.requests.destinations import Destinations
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.request_head import parse_request_head
from unit.wire.test_exchange import LIMITS, Connection

KEY = ApiKey("a", b"", models=frozenset({"alpha"}))
CHAT = "POST /v1/chat/completions"
FORM = b'--X\r\nContent-Disposition: form-data; name="%b"\r\n\r\nalpha\r\n--X--\r\n'


def begin(request: str, body: bytes = b"", content_type: str = "application/json") -> str | None:
    """The model that the limits find."""
    section = f"{request} HTTP/1.1\r\nHost: a\r\ncontent-type: {content_type}\r\n"
    head = parse_request_head(section.encode(), LIMITS)
    head.destination = Destinations((), lambda *_: False).of(head.method, head.path)
    exchange = Exchange(Connection(), head, body, "id-1", "1.2.3.4:5")
    limits = KeyLimits(lambda: 0.0, LiveCatalog(EMPTY), lambda name: False)
    return limits.begin(exchange, Access(KEY, Allowances(lambda: 0.0, Spending(lambda: 0.0)).of(KEY)))


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /v1/responses/resp_1",
        "DELETE /v1/responses/resp_1",
        "GET /responses/resp_1/input_items?after=x",
        "POST /v1/responses/resp_1/cancel",
        "GET /v1/chat/completions/chatcmpl-1/messages",
        "GET /v1/stream?conv_id=a%2Fb",
        "DELETE /v1/stream?conv_id=x",
        "GET /v1/stream/x",
    ],
)
def test_a_limited_key_may_use_resources_which_name_no_model(request_line: str) -> None:
    assert begin(request_line) is None


def test_a_limited_key_may_look_up_streams() -> None:
    assert begin("POST /v1/streams/lookup", b'{"conversation_ids": ["a"]}') is None


@pytest.mark.parametrize(
    ("request_line", "body"),
    [
        ("POST /v1/responses/resp_1/cancel", b'{"model": "beta"}'),
        ("POST /v1/responses/resp_1/cancel", b'{"Model": "beta"}'),
        ("POST /v1/responses/resp_1/cancel", b'{"x": NaN}'),
        ("POST /v1/responses/resp_1/../../chat/completions", b""),
        ("POST /v1/responses/%2e%2e/chat/completions", b""),
        ("GET /v1/responses/resp_1?model=beta", b""),
        ("GET /props", b""),
        ("GET /v1/chat/completions", b""),
    ],
)
def test_a_limited_key_reaches_no_other_model_by_the_name_of_a_resource(request_line: str, body: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        begin(request_line, body)
    assert (caught.value.status, caught.value.code) == (403, "model_not_permitted")


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b'{"model": "beta"}', "application/json", "This key may not use the model 'beta'; this key may only be used"),
        (b"{}", "application/json", "The request names no model, and this key may only be used for: alpha."),
        (b"", "application/json", "The request names no model, and"),
        (FORM % b"file", "multipart/form-data; boundary=X", "The request names no model, and"),
    ],
)
def test_a_refusal_states_the_reason(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(ClientError) as caught:
        begin(CHAT, body, content_type)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"model": "alpha"}).encode("utf-16"),
        b'{"model": "alpha", "Model": "alpha"}',
        b'{"model": "alpha", "x": NaN}',
        b'{"model": "alpha"',
        b"model=alpha",
        FORM % b"model",  # without its boundary
    ],
)
def test_a_model_that_is_uncertain_is_not_reported_as_forbidden(body: bytes) -> None:
    with pytest.raises(ClientError, match="not certain which model the request names") as caught:
        begin(CHAT, body)
    assert "may only be used for" not in caught.value.message
