"""Findings about backends that should be alike."""

from __future__ import annotations

from typing import Any

import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.backend_checks import Examined
from inference_engine_proxy_server.doctor.fleet_checks import check_fleet

SAME = {"meta": {"n_params": 7, "size": 8, "n_vocab": 9}}
OTHER = {"meta": {"n_params": 1, "size": 8, "n_vocab": 9}}
VLLM = {"root": "/models/a"}


def found(*backends: list[dict[str, Any]], models: tuple[str, ...] | None = None) -> list[str]:
    examined = [
        Examined(BackendConfig(f"http://b{at}", f"b{at}", models=models), models=entries)
        for at, entries in enumerate(backends)
    ]
    return [finding.code for finding in check_fleet(examined)]


@pytest.mark.parametrize(
    ("backends", "codes"),
    [
        ([[{"id": "a", **SAME}], [{"id": "b", **SAME}]], ["model_names_differ"]),
        ([[{"id": "a", **VLLM}], [{"id": "b", **VLLM}]], ["model_names_differ"]),
        ([[{"id": "a", **SAME}], [{"id": "a", **SAME}]], []),
        ([[{"id": "a", **SAME}], [{"id": "b", **OTHER}]], []),
        ([[{"id": "a"}], [{"id": "b"}]], []),
        ([[{"id": "a", **SAME}, {"id": "b", **SAME}], [{"id": "b", **SAME}]], []),
        ([[{"id": "a", **VLLM}], [{"id": "lora", **VLLM, "parent": "a"}]], []),
        ([[], []], ["no_backend_works"]),
        ([[], [{"id": "a"}]], []),
        ([], []),
    ],
)
def test_names_of_models(backends: list[list[dict[str, Any]]], codes: list[str]) -> None:
    assert found(*backends) == codes


def test_names_in_the_fleet_file_replace_those_of_engines() -> None:
    assert found([{"id": "a", **SAME}], [{"id": "b", **SAME}], models=("m",)) == []
