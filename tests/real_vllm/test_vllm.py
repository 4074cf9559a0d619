"""The proxy in front of real vLLM servers. Run by `scripts/test.sh vllm`."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from inference_engine_proxy_server.backends.base import Api
from real_vllm.conftest import MODEL, MOST_RUNNING, Vllm, ask, eventually

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "max_tokens": max_tokens, "ignore_eos": True, **more}


def send_and_disconnect(url: str, payload: dict[str, Any], engines: list[Vllm], *, after_first_byte: bool) -> None:
    """Send a request, and close the connection once an engine works on it or has begun to answer."""
    body = json.dumps(payload).encode()
    address = urlsplit(url)
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=30) as client:
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode() + body)
        if after_first_byte:
            assert client.recv(1)
        else:
            assert eventually(lambda: not idle(engines), 5)


def idle(engines: list[Vllm]) -> bool:
    return not any(engine.running() for engine in engines)


def in_flight_by_backend(proxy: str) -> tuple[int, ...]:
    return tuple(backend["requests_in_flight"] for backend in ask(f"{proxy}/health").json()["details"])


def polled_as_idle(proxy: str) -> bool:
    """Whether no engine had requests when the proxy last polled it."""
    metrics = [backend["metrics"] for backend in ask(f"{proxy}/health").json()["details"]]
    return not any(polled["requests_processing"] + polled["requests_waiting"] for polled in metrics)


def in_flight(proxy: str) -> int:
    return sum(in_flight_by_backend(proxy))


def test_both_servers_are_identified_as_vllm_and_ready(proxy: str, engines: list[Vllm]) -> None:
    health = ask(f"{proxy}/health").json()
    assert (health["status"], len(health["available_backends"])) == ("ok", 2)
    assert all("kv_cache_usage" in json.dumps(backend["metrics"]) for backend in health["details"])


def test_progress_counter_stands_still_while_idle(engines: list[Vllm]) -> None:
    assert eventually(lambda: idle(engines), 5)
    seen = {engines[0].state().progress for _ in range(10)}
    assert len(seen) == 1
    assert seen != {None}


def test_progress_counter_moves_while_streaming_but_not_while_the_engine_hangs(engines: list[Vllm]) -> None:
    engine = engines[0]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, f"{engine.url}/v1/chat/completions", chat(800, stream=True))
        assert eventually(lambda: engine.running() == 1, 5)
        before = engine.state().progress
        assert eventually(lambda: engine.state().progress != before, 5)
        with engine.engine_stopped():
            time.sleep(0.5)  # tokens generated before must have been counted
            seen = [engine.state() for _ in range(2)]
        assert answer.result().status == 200
    assert {(state.ready, state.requests_processing) for state in seen} == {(True, 1.0)}
    assert len({state.progress for state in seen}) == 1


def test_progress_counter_moves_while_a_long_prompt_is_read(engines: list[Vllm]) -> None:
    engine = engines[0]
    assert eventually(lambda: idle(engines), 5)
    counted = engine.state().figures["vllm:prompt_tokens_total"]
    prompt = [10 + index * index % 233 for index in range(1900)]  # token ids; read 64 at a time
    seen = []
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, f"{engine.url}/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 2})
        while not answer.done():
            state = engine.state()
            if state.requests_processing and state.figures["vllm:prompt_tokens_total"] == counted:
                seen.append(state.progress)
        assert answer.result().status == 200
    assert len(set(seen)) >= 2


def test_capacity_is_the_number_of_running_requests_while_others_wait(engines: list[Vllm]) -> None:
    engine = engines[0]
    count = MOST_RUNNING + 8
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(ask, f"{engine.url}/v1/chat/completions", chat(400)) for _ in range(count)]
        polled = engine.backend()
        assert eventually(lambda: asyncio.run(polled.fetch_state()).capacity == MOST_RUNNING, 30)
        assert {answer.result().status for answer in answers} == {200}
    assert asyncio.run(polled.fetch_state()).capacity is None


def test_concurrent_requests_use_both_servers(proxy: str, engines: list[Vllm]) -> None:
    """The proxy evens out requests in flight. How many an engine completes depends on its speed, which differs."""
    assert eventually(lambda: polled_as_idle(proxy), 10)  # the tests before sent requests that the proxy has not seen
    with ThreadPoolExecutor(16) as pool:
        with engines[0].engine_stopped(), engines[1].engine_stopped():
            answers = [pool.submit(ask, f"{proxy}/v1/chat/completions", chat()) for _ in range(32)]
            assert eventually(lambda: in_flight(proxy) == 16, 5)
            counts = in_flight_by_backend(proxy)
    assert max(counts) - min(counts) <= 2
    assert {answer.result().status for answer in answers} == {200}
    assert {answer.result().headers["x-backend"] for answer in answers} == {engine.url for engine in engines}


def test_models_are_merged(proxy: str, engines: list[Vllm]) -> None:
    entries = ask(f"{proxy}/v1/models").json()["data"]
    assert [entry["id"] for entry in entries] == [MODEL]
    assert entries[0]["max_model_len"] == 2048


def test_unknown_model_is_404_if_all_servers_are_strict(proxy: str, engines: list[Vllm]) -> None:
    answer = ask(f"{proxy}/v1/chat/completions", chat() | {"model": "nobody-has-this"})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_sdk_streams_token_by_token(proxy: str, engines: list[Vllm]) -> None:
    client = openai.OpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=0)
    arrivals = []
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    for chunk in stream:
        arrivals.append(time.monotonic())
        usage = chunk.usage
    assert usage is not None
    assert usage.completion_tokens == 200
    assert len(arrivals) > 20
    assert arrivals[len(arrivals) // 2] - arrivals[0] > 0.2 * (arrivals[-1] - arrivals[0])


@pytest.mark.parametrize(("stream", "after_first_byte"), [(True, True), (True, False), (False, False)])
def test_disconnect_frees_the_slot(proxy: str, engines: list[Vllm], stream: bool, after_first_byte: bool) -> None:
    assert eventually(lambda: idle(engines), 5)
    send_and_disconnect(proxy, chat(1900, stream=stream), engines, after_first_byte=after_first_byte)
    assert eventually(lambda: in_flight(proxy) == 0, 1)
    assert eventually(lambda: idle(engines), 1.5)


def test_requests_around_the_idle_timeout_of_the_engine_never_fail(proxy: str, engines: list[Vllm]) -> None:
    for pause in (2.9, 4.95, 5.0, 5.05):
        assert ask(f"{proxy}/v1/chat/completions", chat(2)).status == 200
        time.sleep(pause)  # the pause is under test: vLLM closes idle connections after 5 s
    assert ask(f"{proxy}/v1/chat/completions", chat(2)).status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_stored_response_is_requested_from_its_home_server(proxy: str, engines: list[Vllm], stream: bool) -> None:
    body = {"model": MODEL, "input": "hi", "max_output_tokens": 4, "stream": stream}
    for _ in range(6):
        made = ask(f"{proxy}/v1/responses", body)
        name = re.search(rb'"id": ?"(resp_[^"]+)"', made.body)
        assert name is not None, made.body
        after = ask(f"{proxy}/v1/responses", body | {"previous_response_id": name[1].decode()})
        again = ask(f"{proxy}/v1/responses/{name[1].decode()}")
        assert (made.status, after.status, again.status) == (200, 200, 200)
        assert made.headers["x-backend"] == after.headers["x-backend"] == again.headers["x-backend"]


def test_response_that_the_proxy_has_not_seen_is_found_by_asking(proxy: str, engines: list[Vllm]) -> None:
    body = {"model": MODEL, "input": "hi", "max_output_tokens": 4}
    for engine in engines:
        name = ask(f"{engine.url}/v1/responses", body).json()["id"]
        after = ask(f"{proxy}/v1/responses", body | {"previous_response_id": name})
        assert (after.status, after.headers["x-backend"]) == (200, engine.url)
        assert ask(f"{proxy}/v1/responses/{name}").json()["id"] == name
    unknown = ask(f"{proxy}/v1/responses/resp_unknown")
    assert (unknown.status, unknown.json()["error"]["param"]) == (404, "response_id")


def test_control_endpoints_are_blocked(proxy: str, engines: list[Vllm]) -> None:
    answer = ask(f"{proxy}/sleep?level=1", {})
    assert answer.status == 403
    assert "BLOCKED_PATHS" in answer.json()["error"]["message"]


BEGUN = [*MESSAGES, {"role": "assistant", "content": "one address"}]


def test_messages_begin_a_new_answer_so_no_stream_of_them_is_continued(engines: list[Vllm]) -> None:
    """The prompt has the tokens that end the begun message and begin another one.

    If this fails, vLLM continues messages now: add the API in ``backends/vllm.py``.
    """
    [engine, _] = engines
    url = f"{engine.url}/v1/chat/completions"
    continuing = chat(2, continue_final_message=True, add_generation_prompt=False) | {"messages": BEGUN}
    continued = ask(url, continuing).json()["usage"]["prompt_tokens"]
    begun_anew = ask(url, chat(2) | {"messages": BEGUN}).json()["usage"]["prompt_tokens"]
    message = {"model": MODEL, "max_tokens": 2, "messages": BEGUN}
    assert ask(f"{engine.url}/v1/messages", message).json()["usage"]["input_tokens"] == begun_anew > continued
    assert engine.state().continued_apis == {Api.COMPLETIONS}


def test_sleeping_engine_gets_no_request_until_it_wakes(proxy: str, engines: list[Vllm]) -> None:
    asleep, awake = engines
    assert ask(f"{asleep.url}/sleep?level=1", {}).status == 200
    try:
        assert eventually(lambda: ask(f"{proxy}/health").json()["available_backends"] == [awake.url], 5)
        served = {ask(f"{proxy}/v1/chat/completions", chat(2)).headers["x-backend"] for _ in range(6)}
        assert served == {awake.url}
    finally:
        assert ask(f"{asleep.url}/wake_up", {}).status == 200
    assert eventually(lambda: len(ask(f"{proxy}/health").json()["available_backends"]) == 2, 5)


def test_engine_errors_are_relayed_unchanged(proxy: str, engines: list[Vllm]) -> None:
    too_long = chat() | {"messages": [{"role": "user", "content": "word " * 4000}]}
    direct, proxied = (ask(f"{url}/v1/chat/completions", too_long) for url in (engines[0].url, proxy))
    assert (proxied.status, proxied.body) == (direct.status, direct.body)
    assert direct.status == 400
