"""Ollama, beyond the contract of all engines."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import Probe, Reply, Thresholds
from inference_engine_proxy_server.backends.ollama import OllamaBackend
from recorded import answering, recorded

IDLE: dict[str, Reply | Exception] = {
    "/api/version": Reply(200, b'{"version":"0.33.0"}'),
    "/v1/models": recorded("ollama", "v1-models"),
    "/api/tags": recorded("ollama", "api-tags"),
    "/api/ps": recorded("ollama", "api-ps"),
}


def backend(answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> OllamaBackend:
    return OllamaBackend("http://b", answering(answers, asked), Thresholds(6, 3))


async def test_while_a_model_loads_the_previous_models_count_as_loaded() -> None:
    answers = {**IDLE}
    ollama = backend(answers)
    before = await ollama.fetch_state()
    answers["/api/ps"] = TimeoutError()
    assert (await ollama.fetch_state()).model_reports == before.model_reports != {}


async def test_a_server_that_was_restarted_has_no_models_from_before() -> None:
    answers = {**IDLE}
    ollama = backend(answers)
    await ollama.fetch_state()
    answers["/api/version"] = Reply(502, b"")
    assert not (await ollama.fetch_state()).live
    answers |= {"/api/version": IDLE["/api/version"], "/api/ps": TimeoutError()}
    assert (await ollama.fetch_state()).model_reports == {}


async def test_the_question_that_can_hang_comes_last() -> None:
    asked: list[str] = []
    await backend({**IDLE}, asked).fetch_state()
    assert asked[-1] == "/api/ps"


async def test_a_model_is_loaded_under_every_name_of_its_digest() -> None:
    reports = (await backend({**IDLE}).fetch_state()).model_reports
    assert {name: report.status for name, report in reports.items()} == {
        "deepseek-r1:latest": "unloaded",
        "llama3.2:latest": "loaded",
        "llama3.2:3b": "loaded",
        "gpt-oss:120b-cloud": "remote",
    }
    assert [name for name, report in reports.items() if report.in_memory] == ["llama3.2:latest", "llama3.2:3b"]


async def test_a_model_of_the_cloud_is_always_ready() -> None:
    report = (await backend({**IDLE}).fetch_state()).model_reports["gpt-oss:120b-cloud"]
    assert (report.is_ready, report.in_memory) == (True, False)


@pytest.mark.parametrize("text", [b"Ollama is running", b"Ollama is running\n"])
async def test_it_is_recognized_by_its_greeting(text: bytes) -> None:
    assert await OllamaBackend.recognizes(Probe(answering({"/": Reply(200, text)})))


@pytest.mark.parametrize("reply", [Reply(200, b"Ollama is running here"), Reply(404, b"Ollama is running")])
async def test_another_greeting_is_not_enough(reply: Reply) -> None:
    assert not await OllamaBackend.recognizes(Probe(answering({"/": reply})))
