"""Where requests go."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.destinations import ANSWERED_HERE, Destination, Destinations

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
        ("GET", "/props", Destination.LIGHT),
        ("PUT", "/v1/chat/completions", Destination.LIGHT),
        ("POST", "/slots/0", Destination.BLOCKED),
        ("GET", "/slots/0", Destination.LIGHT),
        ("GET", "/health", Destination.OWN),  # though the deny-list has it
        ("HEAD", "/v1/models", Destination.OWN),
        ("POST", "/v1/models", Destination.WORK),
        ("GET", "/v1/models/", Destination.LIGHT),
        ("GET", "/metrics", Destination.OPERATORS),
        ("POST", "/metrics", Destination.WORK),
        ("DELETE", "/admin", Destination.OPERATORS),
        ("POST", "/admin/anything", Destination.OPERATORS),
        ("GET", "/administration", Destination.LIGHT),
    ],
)
def test_method_and_path_say_what_becomes_of_a_request(method: str, path: str, expected: Destination) -> None:
    destinations = Destinations(OWN_PATHS, blocks)
    assert [destinations.of(method, path) for _ in range(2)] == [expected, expected]
    assert (expected in ANSWERED_HERE) is (expected in (Destination.OWN, Destination.OPERATORS))
