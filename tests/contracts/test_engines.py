"""The contract of every engine, whatever a backend answers: the built-in engines, and the example of the README."""

from __future__ import annotations

import asyncio
import math

import pytest

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Reply,
    Thresholds,
    UnreadableState,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples
from inference_engine_proxy_server.backends.registry import discover_engines
from recorded import answering, recorded


class ReadmeBackend(BaseBackend):
    """The smallest complete engine."""

    providers = ("readme",)

    async def fetch_metrics(self) -> tuple[float, bool]:
        reply = await self.get("/metrics")
        load = sum_samples(reply.body, ["vllm:num_requests_running"]).get("vllm:num_requests_running")
        if reply.status != 200 or load is None:
            raise UnreadableState(f"GET /metrics answered {reply.status}")
        return load, True


_found = discover_engines()
BUILT_IN = sorted({*_found.by_provider.values(), _found.fallback}, key=lambda engine: engine.__name__)
PATHS = ("/health", "/metrics", "/v1/models", "/is_paused", "/props", "/version")
HEALTHY: dict[str, Reply | Exception] = {
    "/health": recorded("vllm", "health"),
    "/metrics": Reply(200, recorded("vllm", "metrics").body + recorded("llama-server", "metrics-after").body),
    "/v1/models": recorded("vllm", "v1-models"),
    "/is_paused": recorded("vllm", "is_paused"),
    "/props": Reply(200, b'{"total_slots":2}'),
    "/version": Reply(200, b'{"version":"0.32.0"}'),
}
_NEGATIVE = (
    b'llamacpp:requests_processing -5\nllamacpp:n_decode_total -5\nvllm:num_requests_running{engine="0"} -5\n'
    b"vllm:prompt_tokens_total -5\nvllm:generation_tokens_total 1\nvllm:kv_cache_usage_perc 0\n"
)
ANSWERS: dict[str, Reply | Exception] = {
    "timeout": TimeoutError(),
    "refused": ConnectionRefusedError(),
    "reset": ConnectionResetError(),
    "name not known": OSError("Name or service not known"),
    "not HTTP": UnreadableState("not HTTP"),
    "empty": Reply(200, b""),
    "no content": Reply(204, b""),
    "redirect": Reply(302, b""),
    "key required": Reply(401, b'{"error":"Unauthorized"}'),
    "not found": Reply(404, b'{"detail":"Not Found"}'),
    "broken": Reply(500, b"Internal Server Error"),
    "loading": recorded("llama-server", "health-loading"),
    "unknown status": Reply(999, b""),
    "HTML": Reply(200, b"<!doctype html><html><body>Welcome</body></html>"),
    "1 MiB of junk": Reply(200, bytes(range(256)) * 4096),
    "1 MiB of nesting": Reply(200, b'{"data":[{"id":' + b"[" * 2**20),
    "1 MiB of hidden nesting": Reply(200, b'{"is_paused":true,"x":' + b'{"a":' * 2**18),
    "NUL": Reply(200, b"\x00" * 4096),
    "not UTF-8": Reply(200, b'{"data":[{"id":"\xff\xfe","owned_by":"\xc3"}]}'),
    "JSON null": Reply(200, b"null"),
    "JSON number": Reply(200, b"1" * 5000),
    "JSON array": Reply(200, b"[[], {}, 1]"),
    "JSON of another shape": Reply(200, b'{"data": {"id": 1}, "is_paused": 7, "total_slots": -3}'),
    "JSON entries of another shape": Reply(200, b'{"data": [{"id": 1}, {"id": "m", "owned_by": [], "status": 3}]}'),
    "half a JSON": Reply(200, b'{"data": [{"id": "m"'),
    "NaN": Reply(200, b"llamacpp:requests_processing NaN\nvllm:num_requests_running NaN\n"),
    "infinite": Reply(200, b"llamacpp:requests_deferred +Inf\nvllm:num_requests_running +Inf\n"),
    "infinite both ways": Reply(200, b'vllm:num_requests_running{e="0"} +Inf\nvllm:num_requests_running{e="1"} -Inf\n'),
    "negative": Reply(200, _NEGATIVE),
    "half a metric": Reply(200, b'llamacpp:requests_processing\nvllm:num_requests_running{engine="0'),
}


@pytest.fixture(params=[*BUILT_IN, ReadmeBackend], ids=lambda engine: engine.__name__)
def engine(request: pytest.FixtureRequest) -> type[BaseBackend]:
    found: type[BaseBackend] = request.param
    return found


def make(engine: type[BaseBackend], answers: dict[str, Reply | Exception]) -> BaseBackend:
    return engine("http://b", answering(answers), Thresholds(requests_processing=6, requests_waiting=3))


def check(state: BackendState) -> None:
    assert state.live or not state.ready
    assert state.ready == (not state.reason)
    assert not (state.starting and state.live)
    assert state.capacity is None or state.capacity >= 1
    for count in (state.requests_processing, state.requests_waiting, state.progress):
        assert count == non_negative(count)
    assert all(math.isfinite(figure) for figure in state.figures.values())
    assert state.models is None or all(isinstance(model["id"], str) for model in state.models)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_any_answer_on_one_path_gives_a_consistent_state_or_a_documented_error(
    engine: type[BaseBackend], path: str, answer: Reply | Exception
) -> None:
    try:
        check(await make(engine, {**HEALTHY, path: answer}).fetch_state())
    except (UnreadableState, OSError):  # documented; TimeoutError is an OSError
        return


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_any_answer_on_all_paths_gives_a_consistent_state_or_a_documented_error(
    engine: type[BaseBackend], answer: Reply | Exception
) -> None:
    backend = make(engine, dict.fromkeys(PATHS, answer))
    for _ in range(2):  # state that the first poll leaves must not break the second
        try:
            check(await backend.fetch_state())
        except (UnreadableState, OSError):
            continue


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_any_answer_gives_a_valid_load_or_a_documented_error(
    engine: type[BaseBackend], answer: Reply | Exception
) -> None:
    for path in PATHS:
        try:
            load, ready = await make(engine, {**HEALTHY, path: answer}).fetch_metrics()
        except (UnreadableState, OSError):
            continue
        assert isinstance(ready, bool)
        # For the README's engine, fetch_state checks the load.
        assert engine is ReadmeBackend or non_negative(load) is not None


async def test_a_healthy_backend_is_ready(engine: type[BaseBackend]) -> None:
    state = await make(engine, HEALTHY).fetch_state()
    check(state)
    assert state.ready
    assert [model["id"] for model in state.models or ()] == ["tiny"]


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/is_paused", "/props", "/version"])
@pytest.mark.parametrize("answer", [TimeoutError(), ConnectionResetError(), Reply(500, b""), Reply(200, b"\x00")])
@pytest.mark.parametrize("engine_with_health", BUILT_IN)
async def test_only_the_health_path_decides_readiness(
    engine_with_health: type[BaseBackend], path: str, answer: Reply | Exception
) -> None:
    assert (await make(engine_with_health, {**HEALTHY, path: answer}).fetch_state()).ready


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError(), UnreadableState()])
@pytest.mark.parametrize("engine_with_health", BUILT_IN)
async def test_a_missing_health_reply_raises(engine_with_health: type[BaseBackend], error: Exception) -> None:
    with pytest.raises(type(error)):
        await make(engine_with_health, {**HEALTHY, "/health": error}).fetch_state()


async def test_polling_leaves_no_task_behind(engine: type[BaseBackend]) -> None:
    hanging = asyncio.Event()

    async def get(path: str, json_body: bytes | None = None) -> Reply:
        if path == "/metrics":
            await hanging.wait()
        return Reply(200, b"")

    asked = engine("http://b", get, Thresholds(requests_processing=6, requests_waiting=3))
    with pytest.raises((TimeoutError, UnreadableState)):
        await asyncio.wait_for(asked.fetch_metrics(), 0.02)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_providers_are_names(engine: type[BaseBackend]) -> None:
    assert isinstance(engine.providers, tuple)
    assert all(provider and isinstance(provider, str) for provider in engine.providers)
