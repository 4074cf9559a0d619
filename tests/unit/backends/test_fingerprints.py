"""What built-in engines report of their models, and how often they are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import BaseBackend, Reply, Thresholds
from inference_engine_proxy_server.backends.fingerprint import Fingerprint, Weights, template_hash
from inference_engine_proxy_server.backends.llamacpp import LlamaCppBackend
from inference_engine_proxy_server.backends.vllm import VLLMBackend
from recorded import answering, recorded

GEMMA, TINY = "models/gemma-3-270m-q4_k_m.gguf", "tiny"
GEMMA_WEIGHTS = Weights(268098176, 246587904, 262144, 640)
TOKENS = Reply(200, b'{"tokens":[302,331,338]}')
VLLM_TOKENS = Reply(200, b'{"count":3,"max_model_len":2048,"tokens":[302,331,338],"token_strs":null}')
Answers = dict[str, Reply | Exception]
# Below, ``questions``: with ``/tokenize``, vLLM is also asked what its prompts have of a begun answer.


def props(**members: Any) -> Reply:
    usual = {"total_slots": 2, "chat_template": "{{ x }}", "build_info": "b11549-0badc0de", "is_sleeping": False}
    return Reply(200, json.dumps(usual | members).encode())


def llamacpp(**changed: Reply | Exception) -> Answers:
    return {
        "/health": recorded("llama-server", "health-ready"),
        "/metrics": recorded("llama-server", "metrics-after"),
        "/v1/models": recorded("llama-server", "v1-models"),
        "/props": props(),
        "/tokenize": TOKENS,
    } | {f"/{path}": answer for path, answer in changed.items()}


def vllm(**changed: Reply | Exception) -> Answers:
    return {
        "/health": recorded("vllm", "health"),
        "/metrics": recorded("vllm", "metrics"),
        "/v1/models": recorded("vllm", "v1-models"),
        "/version": Reply(200, b'{"version":"0.32.0"}'),
        "/tokenize": VLLM_TOKENS,
    } | {f"/{path}": answer for path, answer in changed.items()}


def made(engine: type[BaseBackend], answers: Answers, asked: list[str] | None = None) -> BaseBackend:
    return engine("http://b", answering(answers, asked), Thresholds(requests_processing=6, requests_waiting=3))


async def test_a_llama_cpp_server() -> None:
    found = (await made(LlamaCppBackend, llamacpp()).fetch_state()).fingerprints
    tokenizer = found[GEMMA].tokenizer
    assert tokenizer is not None
    expected = Fingerprint(GEMMA_WEIGHTS, None, template_hash("{{ x }}"), tokenizer, 2, "b11549-0badc0de", "llamacpp")
    assert found == {GEMMA: expected}
    assert str(expected.weights) == "268,098,176 parameters (246,587,904 bytes)"


async def test_a_vllm_server_tells_less() -> None:
    of_vllm = (await made(VLLMBackend, vllm()).fetch_state()).fingerprints
    of_llamacpp = (await made(LlamaCppBackend, llamacpp()).fetch_state()).fingerprints
    tokenizer = of_llamacpp[GEMMA].tokenizer  # the same tokens have the same hash on every engine
    assert of_vllm == {TINY: Fingerprint(source="tiny-hf", tokenizer=tokenizer, version="0.32.0", engine="vllm")}


async def test_other_tokens_are_another_tokenizer() -> None:
    hashes = set()
    for tokens in (b"[1,2]", b"[12]", b"[2,1]"):
        answers = llamacpp(tokenize=Reply(200, b'{"tokens":%s}' % tokens))
        hashes.add((await made(LlamaCppBackend, answers).fetch_state()).fingerprints[GEMMA].tokenizer)
    assert len(hashes - {None}) == 3


@pytest.mark.parametrize("answer", [Reply(404, b""), Reply(200, b"<html>"), Reply(200, b'{"tokens":[]}')])
@pytest.mark.parametrize(("engine", "answers", "questions"), [(LlamaCppBackend, llamacpp, 1), (VLLMBackend, vllm, 2)])
async def test_a_server_without_such_a_page_is_asked_once(
    engine: type[BaseBackend], answers: Callable[..., Answers], questions: int, answer: Reply
) -> None:
    asked: list[str] = []
    backend = made(engine, answers(tokenize=answer), asked)
    for _ in range(3):
        [found] = (await backend.fetch_state()).fingerprints.values()
        assert found.tokenizer is None
    assert asked.count("/tokenize") == questions


@pytest.mark.parametrize(("engine", "answers", "questions"), [(LlamaCppBackend, llamacpp, 1), (VLLMBackend, vllm, 2)])
async def test_the_tokenizer_is_asked_again_after_silence_and_after_a_restart(
    engine: type[BaseBackend], answers: Callable[..., Answers], questions: int
) -> None:
    asked: list[str] = []
    pages = answers(tokenize=TimeoutError())
    backend = made(engine, pages, asked)
    [silent] = (await backend.fetch_state()).fingerprints.values()
    assert silent.tokenizer is None
    pages["/tokenize"] = TOKENS
    while not next(iter((await backend.fetch_state()).fingerprints.values())).tokenizer:
        assert asked.count("/tokenize") == questions
    assert asked.count("/health") == 22  # silence delays a poll, so not every poll asks
    [found] = (await backend.fetch_state()).fingerprints.values()
    assert found.tokenizer is not None
    assert asked.count("/tokenize") == 2 * questions

    pages |= {"/health": Reply(503, b""), "/props": props(media_marker="of another process")}
    await backend.fetch_state()
    pages |= {"/health": Reply(200, b"{}"), "/tokenize": Reply(200, b'{"tokens":[9]}')}
    before = asked.count("/tokenize")
    await backend.fetch_state()
    assert asked.count("/tokenize") == before + questions


async def test_a_sleeping_server_is_not_woken() -> None:
    asked: list[str] = []
    pages = llamacpp(props=props(is_sleeping=True))
    backend = made(LlamaCppBackend, pages, asked)
    assert (await backend.fetch_state()).fingerprints == {}
    pages["/props"] = props()
    awake = (await backend.fetch_state()).fingerprints
    pages["/props"] = props(is_sleeping=True)
    assert (await backend.fetch_state()).fingerprints == awake != {}
    pages["/props"] = props()
    await backend.fetch_state()
    assert asked.count("/tokenize") == 1


async def test_a_router_tells_the_weights_of_models_in_memory_and_is_not_asked() -> None:
    asked: list[str] = []
    pages: Answers = {
        "/health": recorded("llama-server-router", "health"),
        "/v1/models": recorded("llama-server-router", "v1-models-after"),
        "/props": Reply(200, b'{"role":"router","max_instances":4}'),
    }
    state = await made(LlamaCppBackend, pages, asked).fetch_state()
    assert state.fingerprints == {"tiny-a": Fingerprint(Weights(204736, 818944, 957, 64))}
    assert "/tokenize" not in asked


async def test_adapters_of_vllm_have_no_fingerprint() -> None:
    entries = [{"id": "base", "root": "/models/base"}, {"id": "lora", "root": "/adapters/lora", "parent": "base"}]
    pages = vllm()
    pages["/v1/models"] = Reply(200, json.dumps({"data": entries}).encode())
    assert list((await made(VLLMBackend, pages).fetch_state()).fingerprints) == ["base"]
