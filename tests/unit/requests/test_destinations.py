"""Destinations of requests."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.destinations import (
    ANSWERED_HERE,
    Destination,
    Destinations,
    is_web_ui,
    streams_events,
)

OWN_PATHS = ("/health", "/metrics", "/v1/models")


def blocks(method: str, path: str) -> bool:
    return (method, path) in {("POST", "/slots/0"), ("GET", "/health")}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", Destination.WORK),
        ("POST", "/anything", Destination.WORK),
        ("POST", "/tokenize", Destination.LIGHT),
        ("POST", "/v1/messages/count_tokens", Destination.LIGHT),
        ("POST", "/api/extra/tokencount", Destination.LIGHT),
        ("POST", "/v1/token/encode", Destination.LIGHT),
        ("POST", "/api/show", Destination.LIGHT),
        ("POST", "/api/v1/generate", Destination.WORK),
        ("GET", "/props", Destination.LIGHT),
        ("PUT", "/v1/chat/completions", Destination.LIGHT),
        ("POST", "/slots/0", Destination.BLOCKED),
        ("GET", "/slots/0", Destination.LIGHT),
        ("GET", "/health", Destination.OWN),  # despite the deny-list
        ("HEAD", "/v1/models", Destination.OWN),
        ("POST", "/v1/models", Destination.WORK),
        ("GET", "/v1/models/", Destination.OWN),
        ("GET", "/health/", Destination.OWN),
        ("HEAD", "/health/", Destination.OWN),
        ("POST", "/health/", Destination.WORK),
        ("GET", "/metrics/", Destination.OPERATORS),
        ("GET", "/health//", Destination.LIGHT),
        ("POST", "//v1/chat/completions", Destination.MISJOINED),
        ("POST", "///v1/chat/completions", Destination.MISJOINED),
        ("GET", "//v1/models", Destination.MISJOINED),
        ("GET", "//v1", Destination.MISJOINED),
        ("POST", "/v1//chat/completions", Destination.MISJOINED),
        ("GET", "/v1/models/org//name", Destination.OWN),
        ("GET", "//v1x", Destination.LIGHT),
        ("POST", "//chat/completions", Destination.WORK),
        ("GET", "/v1/models/org/name%2Fpart", Destination.OWN),
        ("HEAD", "/models", Destination.OWN),
        ("GET", "/models/m", Destination.OWN),
        ("POST", "/models/load", Destination.WORK),
        ("DELETE", "/v1/models/m", Destination.LIGHT),
        ("GET", "/models.json", Destination.LIGHT),
        ("GET", "/metrics", Destination.OPERATORS),
        ("POST", "/metrics", Destination.WORK),
        ("DELETE", "/admin", Destination.OPERATORS),
        ("POST", "/admin/anything", Destination.OPERATORS),
        ("GET", "/administration", Destination.LIGHT),
        ("POST", "/v1/streams/lookup", Destination.LIGHT),
        ("POST", "/v1/responses", Destination.TIED),
        ("POST", "/responses", Destination.TIED),
        ("GET", "/v1/responses", Destination.LIGHT),
        ("POST", "/v1/responses/compact", Destination.WORK),
        ("POST", "/v1/chat/completions/input_tokens", Destination.LIGHT),
        ("POST", "/v1/responses/input_tokens", Destination.LIGHT),
        ("POST", "/v1/completions/render", Destination.LIGHT),
        ("POST", "/v1/responses/compact-7", Destination.NAMED),
        ("GET", "/v1/responses/resp_1", Destination.NAMED),
        ("DELETE", "/responses/resp_1", Destination.NAMED),
        ("POST", "/v1/responses/resp_1/cancel", Destination.NAMED),
        ("HEAD", "/v1/responses/resp_1/input_items", Destination.NAMED),
        ("OPTIONS", "/v1/responses/resp_1", Destination.LIGHT),
        ("GET", "/v1/responses/", Destination.LIGHT),
        ("GET", "/v1/stream", Destination.NAMED),
        ("DELETE", "/v1/stream/some-id", Destination.NAMED),
        ("GET", "/v1/streams", Destination.LIGHT),
        ("GET", "/v1/chat/completions/chatcmpl-1", Destination.NAMED),
        ("POST", "/v1/chat/completions/control", Destination.LIGHT),
        ("POST", "/v1/chat/completions/batch", Destination.WORK),
    ],
)
def test_method_and_path_decide_the_destination(method: str, path: str, expected: Destination) -> None:
    destinations = Destinations(OWN_PATHS, blocks)
    assert [destinations.of(method, path) for _ in range(2)] == [expected, expected]
    assert (expected in ANSWERED_HERE) is (expected in (Destination.OWN, Destination.OPERATORS))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/realtime", Destination.WEBSOCKET),
        ("/anything", Destination.WEBSOCKET),
        ("/slots/1", Destination.BLOCKED),
        ("//v1/realtime", Destination.MISJOINED),
        ("/health", None),
        ("/metrics", None),
        ("/admin/keys", None),
        ("/v1/models", None),
        ("/v1/responses/resp_1", None),
    ],
)
def test_a_websocket_opens_only_where_an_engine_may_have_one(path: str, expected: Destination | None) -> None:
    destinations = Destinations(OWN_PATHS, lambda _, path: path == "/slots/1")
    if expected is None:
        with pytest.raises(ClientError) as raised:
            destinations.of("GET", path, opens_websocket=True)
        assert (raised.value.status, raised.value.code) == (426, "upgrade_not_supported")
    else:
        assert destinations.of("GET", path, opens_websocket=True) is expected


def test_work_with_a_conversation_id_is_tied() -> None:
    of = Destinations(OWN_PATHS, blocks).of
    fields = b"accept: */*\r\nX-Conversation-ID: 7\r\n"
    assert of("POST", "/v1/chat/completions", fields) is Destination.TIED
    assert of("POST", "/v1/chat/completions", b"not-x-conversation-id: 7\r\n") is Destination.WORK
    assert of("POST", "/tokenize", fields) is Destination.LIGHT
    assert of("POST", "/slots/0", fields) is Destination.BLOCKED
    assert of("GET", "/health", fields) is Destination.OWN


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/index.html", True),
        ("HEAD", "/bundle.js", True),
        ("GET", "/_app/immutable/chunks/a-1.B_2.js", True),
        ("GET", "/workbox-b3c04f83.js", True),
        ("GET", "/manifest.webmanifest", True),
        ("GET", "/build.json", True),
        ("GET", "/apple-splash-portrait-dark-640x1136.png", True),
        ("GET", "/recommended-mcp/exa.ico", True),
        ("POST", "/index.html", False),
        ("GET", "/props", False),
        ("GET", "/other.json", False),
        ("GET", "/v1/file.png", False),
        ("GET", "/.png", False),
        ("GET", "/..%2fprops.png", False),
        ("GET", "/_app/../props", False),
        ("GET", "/_app/%2e%2e/props", False),
        ("GET", "/_app//props", False),
        ("GET", "/_app/", False),
        ("GET", "/index.html/../props", False),
    ],
)
def test_only_static_files_of_the_web_ui_are_public(method: str, path: str, expected: bool) -> None:
    assert is_web_ui(method, path) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", True),
        ("/chat/completions", True),
        ("/v1/completions", True),
        ("/completion", True),
        ("/infill", True),
        ("/v1/messages", True),
        ("/v1/responses", True),
        ("/api/chat", False),
        ("/api/generate", False),
        ("/v1/audio/speech", False),
        ("/v1/messages/count_tokens", False),
        ("/v1/chat/completions/", False),
    ],
)
def test_only_known_paths_stream_events(path: str, expected: bool) -> None:
    assert streams_events(path) is expected
