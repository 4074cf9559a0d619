from __future__ import annotations

import json
from typing import Any

import pytest

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.tracing.attributes import of_parameters, of_request
from inference_engine_proxy_server.wire.request_head import parse_request_head
from unit.wire.test_exchange import LIMITS, Connection


def request_for(
    line: str = "POST /v1/chat/completions", body: bytes = b"{}", client: str = "1.2.3.4:5"
) -> ProxiedRequest:
    head = parse_request_head(f"{line} HTTP/1.1\r\nHost: a\r\n".encode(), LIMITS)
    return ProxiedRequest(Connection(), head, body, "id-1", client)


def parameters(**members: Any) -> dict[str, Any]:
    found = of_parameters(request_for(body=json.dumps(members).encode()))
    assert found.pop("gen_ai.request.stream") is False
    return {name.removeprefix("gen_ai.request."): value for name, value in found.items()}


def test_parameters_are_taken_as_stated() -> None:
    stated = parameters(
        temperature=0, top_p=0.9, top_k=40, seed=7, n=3, frequency_penalty=1, presence_penalty=-2, user="u"
    )
    assert stated == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 40, "seed": 7, "choice.count": 3, "frequency_penalty": 1.0,
        "presence_penalty": -2.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"])
def test_the_limit_of_the_answer_has_one_name(name: str) -> None:
    assert parameters(**{name: 9}) == {"max_tokens": 9}


@pytest.mark.parametrize("value", [None, "0.5", [1], {}, True, 2**70, -(2**70)])
def test_a_parameter_of_a_wrong_type_is_left_out(value: object) -> None:
    assert parameters(seed=value, top_k=value, max_tokens=value) == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"[]", b'{"temperature": NaN}', b"\xff", b'{"seed": ' + b"[" * 100_000, b'{"top_p": 1e999}'],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_cannot_be_read_has_no_parameters(body: bytes) -> None:
    assert of_parameters(request_for(body=body)) == {"gen_ai.request.stream": False}


@pytest.mark.parametrize(
    ("client", "address"),
    [("1.2.3.4:5", "1.2.3.4"), ("[::1]:5", "::1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1"), ("local", "local")],
)
def test_the_address_of_the_client_has_no_port(client: str, address: str) -> None:
    assert of_request(request_for(client=client), "http")["client.address"] == address


def test_an_unknown_method_and_a_long_path_cannot_make_a_span_large() -> None:
    found = of_request(request_for(f"BREW /{'x' * 500}"), "https")
    assert found["http.request.method"] == "_OTHER"
    assert found["http.request.method_original"] == "BREW"
    assert len(found["url.path"]) == 256
    assert found["url.scheme"] == "https"
    assert "gen_ai.operation.name" not in found


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"), ("/v1/messages", "chat"), ("/v1/responses", "chat"),
        ("/v1/completions", "text_completion"), ("/v1/embeddings", "embeddings"),
    ],
)  # fmt: skip
def test_known_paths_have_an_operation(path: str, operation: str) -> None:
    found = of_request(request_for(f"POST {path}"), "http")
    assert (found["gen_ai.operation.name"], found["http.route"]) == (operation, path)
