"""Findings about names in DNS appear and disappear."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.dns_checks import check_name, resolved

A, B, C, SIX = "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"


class Resolver:
    """Gives the answers in turn; each takes ``seconds``."""

    def __init__(self, *answers: Sequence[str], seconds: float = 0.0) -> None:
        self.answers = list(answers)
        self.seconds = seconds
        self.now = 0.0

    def __call__(self, host: str) -> Sequence[str]:
        assert host == "llm"
        self.now += self.seconds
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("no address")
        return answer


def codes(resolver: Resolver, url: str = "http://llm:8080") -> list[str]:
    return [finding.code for finding in check_name(BackendConfig(url, "b"), resolver, lambda: resolver.now)]


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [
        (Resolver([A]), []),
        (Resolver([SIX, A]), []),  # one machine
        (Resolver([A, B]), ["dns_several_addresses"]),
        (Resolver([A, B], [B, A]), ["dns_several_addresses"]),
        (Resolver([A], [A, B]), ["dns_several_addresses"]),
        (Resolver([A], [B]), ["dns_address_changes"]),
        (Resolver([A], seconds=0.9), []),
        (Resolver([A], seconds=5.0), ["dns_slow"]),
        (Resolver([]), []),  # backend_unknown_host says so
        (Resolver([A], []), []),
    ],
)
def test_findings(resolver: Resolver, expected: list[str]) -> None:
    assert codes(resolver) == expected


def test_addresses_are_not_resolved() -> None:
    for url in ("http://10.0.0.1:8080", "http://[fd00::1]:8080"):
        assert codes(Resolver([A, B]), url) == []


def test_the_system_resolves_a_name() -> None:
    assert set(resolved("localhost")) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"known|address"):
        resolved("no-such-host.invalid")
