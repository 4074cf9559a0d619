"""Findings about backends that should be alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.backends.fingerprint import Fingerprint, Weights
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.backend_checks import Examined
from inference_engine_proxy_server.doctor.fleet_checks import check_fleet
from inference_engine_proxy_server.fleet.difference import Aspect
from inference_engine_proxy_server.fleet.drift import Replica

FINGERPRINT = Fingerprint(Weights(7, 8, 9, 64), "m.gguf", "t", "k", 4, "b1")


def replica(at: int, **changed: Any) -> Replica:
    usual = Replica(f"http://b{at}", "m", frozenset({"m"}), "llamacpp", FINGERPRINT, 8192, frozenset())
    return usual._replace(**changed)


def found(*replicas: Replica | None) -> list[tuple[str, str]]:
    """Code and severity of each finding about backends with one model each; ``None`` for a backend without one."""
    examined = [
        Examined(BackendConfig(f"http://b{at}", f"b{at}"), [], [] if one is None else [{"id": one.model}],
                 [] if one is None else [one])
        for at, one in enumerate(replicas, 1)
    ]  # fmt: skip
    return [(finding.code, finding.severity.value) for finding in check_fleet(examined)]


@pytest.mark.parametrize(
    ("changed", "code", "severity"),
    [
        ({"fingerprint": replace(FINGERPRINT, weights=Weights(7, 9, 9, 64))}, "weights_differ", "warning"),
        ({"fingerprint": replace(FINGERPRINT, source="n.gguf")}, "sources_differ", "warning"),
        ({"fingerprint": replace(FINGERPRINT, tokenizer="l")}, "tokenizers_differ", "warning"),
        ({"fingerprint": replace(FINGERPRINT, template="u")}, "chat_templates_differ", "warning"),
        ({"context": 4096}, "contexts_differ", "warning"),
        ({"names": frozenset({"m", "n"})}, "model_names_differ", "warning"),
        ({"model": "n", "names": frozenset({"n"})}, "model_names_differ", "warning"),
        ({"fingerprint": replace(FINGERPRINT, slots=8)}, "slots_differ", "note"),
        ({"fingerprint": replace(FINGERPRINT, version="b2")}, "versions_differ", "note"),
    ],
)
def test_a_difference_appears_and_disappears(changed: dict[str, Any], code: str, severity: str) -> None:
    assert found(replica(1), replica(2, **changed)) == [(code, severity)]
    assert found(replica(1), replica(2, **changed, may_differ=frozenset(one.value for one in Aspect))) == []
    assert found(replica(1), replica(2)) == []


def test_a_fleet_without_models() -> None:
    assert found(None, None) == [("no_backend_works", "error")]
    assert found(None, replica(2)) == found() == []
