"""The vLLM engine, against recorded and made-up replies."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import ModelNames, Reply, Thresholds, UnreadableState
from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.backends.vllm import VLLMBackend
from recorded import answering, recorded

METRICS = recorded("vllm", "metrics")
AWAKE = {
    "/health": recorded("vllm", "health"),
    "/metrics": METRICS,
    "/v1/models": recorded("vllm", "v1-models"),
    "/is_paused": recorded("vllm", "err-404"),
}
# The metrics before vLLM's "V1" engine: no engine label, another name for the KV cache usage, no sleep state.
OLD_PAGE = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 2.0
# TYPE vllm:num_requests_swapped gauge
vllm:num_requests_swapped{model_name="tiny"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="tiny"} 4.0
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="tiny"} 0.25
"""


def backend(answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> VLLMBackend:
    return VLLMBackend("http://b", answering(answers, asked), Thresholds(requests_processing=6, requests_waiting=3))


def page(**values: str) -> bytes:
    """The recorded page with other values for engine 0, by metric name or by the label of the sleep state."""
    text = METRICS.body.decode()
    for name, value in values.items():
        head = f'vllm:{name}{{engine="0",model_name="tiny"}} '
        if name in ("awake", "weights_offloaded", "discard_all"):
            head = f'vllm:engine_sleep_state{{engine="0",model_name="tiny",sleep_state="{name}"}} '
        assert head in text
        start = text.index(head) + len(head)
        text = text[:start] + value + text[text.index("\n", start) :]
    return text.encode()


async def test_a_recorded_idle_server_is_ready_and_idle() -> None:
    state = await backend({**AWAKE}).fetch_state()
    assert (state.ready, state.live, state.reason) == (True, True, "")
    assert (state.requests_processing, state.requests_waiting) == (0.0, 0.0)
    assert (state.starting, state.capacity, state.progress) == (False, None, 0.0)
    assert [model["id"] for model in state.models or ()] == ["tiny"]
    assert state.model_names is ModelNames.STRICT
    assert (state.contexts, state.bounds_max_tokens) == ({"tiny": 2048}, True)
    assert state.streams_usage_on_request
    assert state.memory_tokens == 2097152
    assert state.figures == {
        "vllm:kv_cache_usage_perc": 0.0,
        "vllm:prompt_tokens_total": 0.0,
        "vllm:generation_tokens_total": 0.0,
        "vllm:prefix_cache_queries_total": 0.0,
        "vllm:prefix_cache_hits_total": 0.0,
    }


BEGUN = {"/tokenize": recorded("vllm", "tokenize-begun"), "/detokenize": recorded("vllm", "detokenize-begun-trimmed")}


@pytest.mark.parametrize(
    ("answers", "begun_answers"),
    [
        (BEGUN, BegunAnswers.TRIMMED),
        ({**BEGUN, "/detokenize": Reply(200, b'{"prompt": "<a>begun \\n\\n"}')}, BegunAnswers.KEPT),
        ({**BEGUN, "/detokenize": Reply(200, b'{"prompt": "<a>begun<end><a>"}')}, BegunAnswers.LOST),
        ({"/tokenize": Reply(400, b"{}")}, BegunAnswers.LOST),
        ({**BEGUN, "/detokenize": Reply(404, b"{}")}, BegunAnswers.TRIMMED),
        ({"/tokenize": Reply(404, b"[]")}, BegunAnswers.TRIMMED),
        ({"/tokenize": ConnectionError()}, BegunAnswers.TRIMMED),
        ({"/tokenize": TimeoutError()}, BegunAnswers.TRIMMED),
    ],
)
async def test_what_its_prompts_have_of_a_begun_answer(
    answers: dict[str, Reply | Exception], begun_answers: BegunAnswers
) -> None:
    assert (await backend({**AWAKE, **answers}).fetch_state()).begun_answers is begun_answers


async def test_it_is_asked_for_its_prompts_once_for_each_process() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {**AWAKE, "/tokenize": TimeoutError()}
    engine = backend(answers, asked)
    await engine.fetch_state()
    answers |= BEGUN  # the tokenizer is compared, too
    for _ in range(30):  # silence delays a poll, so not every poll asks
        await engine.fetch_state()
    assert (asked.count("/tokenize"), asked.count("/detokenize")) == (4, 1)

    answers["/health"] = Reply(503, b"")
    await engine.fetch_state()
    answers["/health"] = AWAKE["/health"]
    await engine.fetch_state()
    assert (asked.count("/tokenize"), asked.count("/detokenize")) == (6, 2)


async def test_waiting_by_reason_is_not_counted_twice() -> None:
    text = page(num_requests_waiting="4.0").replace(b'reason="capacity"} 0.0', b'reason="capacity"} 4.0')
    state = await backend({**AWAKE, "/metrics": Reply(200, text)}).fetch_state()
    assert b'reason="capacity"} 4.0' in text
    assert state.requests_waiting == 4.0


async def test_engines_and_models_are_summed_and_the_fullest_cache_is_shown() -> None:
    second = b"".join(
        b'vllm:%s{engine="1",model_name="other"} %s\n' % sample
        for sample in (
            (b"num_requests_running", b"3"),
            (b"num_requests_waiting", b"5"),
            (b"kv_cache_usage_perc", b"0.5"),
        )
    )
    first = page(num_requests_running="2.0", num_requests_waiting="1.0", kv_cache_usage_perc="0.25")
    state = await backend({**AWAKE, "/metrics": Reply(200, first + second)}).fetch_state()
    assert (state.requests_processing, state.requests_waiting) == (5.0, 6.0)
    assert state.figures["vllm:kv_cache_usage_perc"] == 0.5


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        (['block_size="16",engine="0",kv_cache_size_tokens="1000",num_gpu_blocks="200"'] * 2, 2000),
        (['block_size="16",engine="0",num_gpu_blocks="200"'] * 2, 3200),  # of all engines, repeated by each
        (['block_size="16",kv_cache_size_tokens="None",num_gpu_blocks="200"'], 3200),
        (['block_size="16",num_gpu_blocks="None",num_gpu_blocks_override="200"'], None),
        (['block_size="16",num_gpu_blocks="0"'], None),
        (['block_size="16",num_gpu_blocks="-5"'], None),
        ([], None),
    ],
)
async def test_memory_is_summed_over_all_engines(labels: list[str], tokens: int | None) -> None:
    lines = "".join(f"vllm:cache_config_info{{{one}}} 1.0\n" for one in labels)
    state = await backend({**AWAKE, "/metrics": Reply(200, lines.encode())}).fetch_state()
    assert state.memory_tokens == tokens


async def test_old_metric_names_are_understood() -> None:
    state = await backend({**AWAKE, "/metrics": Reply(200, OLD_PAGE)}).fetch_state()
    assert (state.ready, state.requests_processing, state.requests_waiting) == (True, 2.0, 4.0)
    assert state.figures == {"vllm:kv_cache_usage_perc": 0.25}
    assert state.progress is None


async def test_while_requests_wait_and_running_ones_do_not_increase_the_capacity_is_the_most_it_has_run() -> None:
    answers: dict[str, Reply | Exception] = {**AWAKE}
    polled = backend(answers)
    for running, waiting, capacity in (("6", "0", None), ("2", "4", None), ("2", "4", 6), ("NaN", "4", 6)):
        answers["/metrics"] = Reply(200, page(num_requests_running=running, num_requests_waiting=waiting))
        assert (await polled.fetch_state()).capacity == capacity


async def test_a_failure_resets_the_capacity() -> None:
    answers: dict[str, Reply | Exception] = {**AWAKE, "/metrics": Reply(200, page(num_requests_running="6"))}
    polled = backend(answers)
    await polled.fetch_state()
    answers["/health"] = Reply(503, b"")
    await polled.fetch_state()
    answers["/health"] = Reply(200, b"")
    answers["/metrics"] = Reply(200, page(num_requests_running="2", num_requests_waiting="1"))
    await polled.fetch_state()
    assert (await polled.fetch_state()).capacity == 2


@pytest.mark.parametrize(
    "moved",
    [
        {"generation_tokens_total": "11.0"},
        {"prompt_tokens_total": "101.0"},
        {"kv_cache_usage_perc": "0.2501"},
        {"kv_cache_usage_perc": "0.0"},
    ],
)
async def test_progress_changes_with_tokens_and_with_cache_usage(moved: dict[str, str]) -> None:
    before = {"generation_tokens_total": "10.0", "prompt_tokens_total": "100.0", "kv_cache_usage_perc": "0.25"}
    states = [
        (await backend({**AWAKE, "/metrics": Reply(200, page(**values))}).fetch_state()).progress
        for values in (before, before, before | moved)
    ]
    assert states[0] == states[1] == 110.25
    assert states[2] not in (None, 110.25)


async def test_progress_covers_every_engine() -> None:
    second = b'vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} %s\n'
    states = [
        (
            await backend(
                {**AWAKE, "/metrics": Reply(200, page(kv_cache_usage_perc="0.5") + second % usage)}
            ).fetch_state()
        )
        for usage in (b"0.1", b"0.2")
    ]
    assert states[0].progress != states[1].progress


@pytest.mark.parametrize("name", ["generation_tokens_total", "prompt_tokens_total", "kv_cache_usage_perc"])
async def test_progress_is_unknown_when_a_part_is_missing(name: str) -> None:
    missing = page().replace(b"\nvllm:" + name.encode() + b"{", b"\nvllm:other{")
    for text in (missing, page(**{name: "NaN"}), page(**{name: "+Inf"})):
        state = await backend({**AWAKE, "/metrics": Reply(200, text)}).fetch_state()
        assert (state.ready, state.progress) == (True, None)


async def test_a_long_queue_does_not_make_it_busy() -> None:
    text = page(num_requests_running="100", num_requests_waiting="100")
    assert await backend({**AWAKE, "/metrics": Reply(200, text)}).fetch_metrics() == (200.0, True)


@pytest.mark.parametrize(
    "states",
    [
        {"awake": "0.0", "weights_offloaded": "1.0"},
        {"awake": "0.0", "discard_all": "1.0"},
        {"awake": "0.0"},
        {"weights_offloaded": "1.0"},
    ],
)
async def test_a_sleeping_server_is_not_live_despite_a_healthy_status(states: dict[str, str]) -> None:
    state = await backend({**AWAKE, "/metrics": Reply(200, page(**states))}).fetch_state()
    assert (state.ready, state.live, state.reason) == (False, False, "asleep")


async def test_one_sleeping_engine_makes_the_server_not_live() -> None:
    text = page() + b'vllm:engine_sleep_state{engine="1",model_name="tiny",sleep_state="awake"} 0.0\n'
    assert (await backend({**AWAKE, "/metrics": Reply(200, text)}).fetch_state()).reason == "asleep"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (recorded("vllm", "is_paused"), ""),
        (Reply(200, b'{"is_paused":true}'), "paused"),
        (Reply(200, b'{"is_paused":"yes"}'), ""),
        (Reply(200, b"\xff"), ""),
        (Reply(200, b'{"a":' + b"[" * 100_000), ""),
        (Reply(401, b'{"is_paused":true}'), ""),
        (TimeoutError(), ""),
        (UnreadableState(), ""),
    ],
    ids=repr,
)
async def test_a_paused_server_is_not_live(answer: Reply | Exception, reason: str) -> None:
    state = await backend({**AWAKE, "/is_paused": answer}).fetch_state()
    assert (state.ready, state.live, state.reason) == (not reason, not reason, reason)


async def test_a_server_without_is_paused_is_asked_once() -> None:
    asked: list[str] = []
    polled = backend({**AWAKE}, asked)
    for _ in range(3):
        await polled.fetch_state()
    assert asked.count("/is_paused") == 1


@pytest.mark.parametrize("trouble", [Reply(503, b""), ConnectionRefusedError()])
async def test_is_paused_is_asked_again_after_a_failure(trouble: Reply | OSError) -> None:
    answers: dict[str, Reply | Exception] = {**AWAKE}
    polled = backend(answers)
    await polled.fetch_state()
    answers |= {"/health": trouble, "/is_paused": Reply(200, b'{"is_paused":true}')}
    if isinstance(trouble, OSError):
        with pytest.raises(OSError):  # noqa: PT011 - the parameters give the type
            await polled.fetch_state()
    else:
        await polled.fetch_state()
    answers |= {"/health": Reply(200, b"")}
    assert (await polled.fetch_state()).reason == "paused"


async def test_a_dead_engine_makes_it_not_live() -> None:
    asked: list[str] = []
    state = await backend({**AWAKE, "/health": Reply(503, b"")}, asked).fetch_state()
    assert (state.ready, state.live, state.reason) == (False, False, "GET /health answered 503")
    assert asked == ["/health"]


@pytest.mark.parametrize("error", [TimeoutError, ConnectionRefusedError, UnreadableState])
async def test_a_missing_health_reply_raises(error: type[Exception]) -> None:
    with pytest.raises(error):
        await backend({**AWAKE, "/health": error()}).fetch_state()


@pytest.mark.parametrize(
    "answer",
    [
        TimeoutError(),
        ConnectionResetError(),
        UnreadableState(),
        Reply(404, b""),
        Reply(200, b""),
        Reply(200, b"<html></html>"),
        Reply(200, page(num_requests_running="NaN", num_requests_waiting="-1")),
    ],
    ids=lambda answer: repr(answer)[:40],
)
async def test_unusable_metrics_leave_it_ready_with_unknown_load(answer: Reply | Exception) -> None:
    state = await backend({**AWAKE, "/metrics": answer}).fetch_state()
    assert (state.ready, state.live, state.model_names) == (True, True, ModelNames.STRICT)
    assert (state.requests_processing, state.requests_waiting, state.capacity) == (None, None, None)
    assert state.models


async def test_figures_that_json_cannot_represent_are_skipped() -> None:
    text = page(kv_cache_usage_perc="NaN", prompt_tokens_total="+Inf")
    state = await backend({**AWAKE, "/metrics": Reply(200, text)}).fetch_state()
    assert set(state.figures) == {
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
    }


async def test_models_behind_a_key_are_none() -> None:
    state = await backend({**AWAKE, "/v1/models": recorded("vllm", "err-no-api-key")}).fetch_state()
    assert (state.ready, state.models, state.model_names) == (True, None, ModelNames.STRICT)


async def test_version_is_asked_once_until_the_server_fails() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {**AWAKE, "/version": Reply(200, b'{"version":"0.32.0"}')}
    polled = backend(answers, asked)
    assert [(await polled.fetch_state()).engine_version for _ in range(3)] == ["0.32.0"] * 3
    assert asked.count("/version") == 1

    answers |= {"/health": Reply(503, b""), "/version": Reply(200, b'{"version":"0.33.0"}')}
    await polled.fetch_state()
    answers |= {"/health": Reply(200, b"")}

    assert (await polled.fetch_state()).engine_version == "0.33.0"


@pytest.mark.parametrize(
    ("answer", "times"), [(recorded("vllm", "err-404"), 1), (Reply(200, b"[]"), 1), (TimeoutError(), 2)]
)
async def test_server_without_a_version_is_ready_and_not_asked_again(answer: Reply | Exception, times: int) -> None:
    asked: list[str] = []
    polled = backend({**AWAKE, "/version": answer}, asked)
    for _ in range(2):
        state = await polled.fetch_state()
        assert (state.ready, state.engine_version) == (True, None)
    assert asked.count("/version") == times
