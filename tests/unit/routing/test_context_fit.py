"""A prompt goes where it fits, judged by the densest text that its model has read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.prompt import Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.context_fit import Need, contexts_of, differ_somewhere, fitting
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.fakes.engine import FakeEngine, answering, http_reply
from support.pools import READY, ForwardingFront, Pool, make_pool

CHAT = "/v1/chat/completions"
SMALL, LARGE, SILENT = 1024.0, 8192.0, math.inf


def need_of(body: dict[str, Any], path: str = CHAT, sizes: TokenSizes | None = None) -> Need | None:
    sizes = sizes or TokenSizes()
    return Need.of(read_prompt(path.encode(), path, b"", json.dumps(body).encode(), sizes), sizes)


def backends(count: int) -> list[Backend]:
    return list(make_pool([f"http://192.0.2.1:{at + 1}" for at in range(count)], Deadlines()).backends)


def positions(contexts: list[float], need: Need, *, draining: int = -1, bounds_max_tokens: bool = False) -> list[int]:
    """Positions of the contexts that ``need`` fits."""
    there = backends(len(contexts))
    for at, one in enumerate(there):
        one.is_draining = at == draining
        one.serving = replace(one.serving, bounds_max_tokens=bounds_max_tokens)
    candidates = [Candidate(one, number) for number, one in enumerate(there)]
    return [one.number for one in fitting(candidates, contexts, need)]


def reporting(backend: Backend, contexts: dict[str, int | None], *, names: ModelNames = ModelNames.STRICT) -> Backend:
    reported = {name: tokens for name, tokens in contexts.items() if tokens is not None}
    models = tuple({"id": name} for name in contexts)
    backend.update_serving(BackendState(ready=True, models=models, model_names=names, contexts=reported))
    return backend


# --- need


def test_need_is_a_dense_prompt_plus_some_answer() -> None:
    need = need_of({"prompt": "x" * 3000})
    assert need is not None
    assert need.tokens == pytest.approx(1000 + 256, rel=0.01)
    assert need.answer_tokens == 0


@pytest.mark.parametrize(("bound", "counted"), [(4, 4), (256, 256), (30_000, 256)])
def test_need_includes_at_most_256_tokens_of_the_allowed_answer(bound: int, counted: int) -> None:
    need = need_of({"prompt": "x" * 3000, "max_tokens": bound})
    assert need is not None
    assert need.tokens == pytest.approx(1000 + counted, rel=0.01)
    assert need.answer_tokens == bound


def test_need_follows_the_densest_texts_of_the_model() -> None:
    sizes = TokenSizes()
    for number in range(20):
        sizes.learn("tiny", (4000, 8000)[number % 2], 2000)
    need = need_of({"model": "tiny", "prompt": "x" * 3600}, sizes=sizes)
    assert need is not None
    assert need.tokens == pytest.approx(2000 + 256, rel=0.01)


def test_picture_does_not_count_as_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 50_000}}
    need = need_of({"messages": [{"role": "user", "content": [picture]}]})
    assert need is not None
    assert need.tokens < 2000


def test_need_of_many_texts_is_unknown() -> None:
    assert need_of({"input": ["x" * 9000] * 100}, "/v1/embeddings") is None


# --- fit


@pytest.mark.parametrize(
    ("tokens", "contexts", "fits"),
    [
        (1024, [SMALL, LARGE], [0, 1]),
        (1025, [SMALL, LARGE], [1]),
        (8192, [SMALL, LARGE, SMALL, LARGE], [1, 3]),
        (8193, [SMALL, LARGE, SMALL, LARGE], [1, 3]),
        (8193, [SMALL, LARGE, SILENT], [2]),
    ],
)
def test_prompt_goes_where_it_fits_or_else_to_the_longest_context(
    tokens: int, contexts: list[float], fits: list[int]
) -> None:
    assert positions(contexts, Need(tokens, 0)) == fits


def test_draining_backend_is_not_waited_for() -> None:
    assert positions([SMALL, LARGE], Need(2000, 0), draining=1) == [0]
    assert positions([LARGE], Need(9000, 0), draining=0) == []


def test_longest_answer_must_fit_where_the_backend_bounds_it() -> None:
    need = Need(500, 2000)
    assert positions([SMALL, LARGE], need) == [0, 1]
    assert positions([SMALL, LARGE], need, bounds_max_tokens=True) == [1]


# --- differences


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ({"m": 1024}, {"m": 1024}, False),
        ({"m": 1024}, {"m": 8192}, True),
        ({"m": 1024}, {"m": None}, True),
        ({"m": None}, {"m": None}, False),
        ({"m": 1024}, {"n": 8192}, False),
        ({"m": 1024, "n": 512}, {"m": 1024, "o": 8192}, False),
    ],
)
def test_contexts_differ_if_one_model_has_different_ones(
    one: dict[str, int | None], other: dict[str, int | None], differ: bool
) -> None:
    first, second = backends(2)
    assert differ_somewhere([reporting(first, one), reporting(second, other)]) is differ


def test_non_strict_backends_serve_unlisted_models() -> None:
    first, second = backends(2)
    reporting(first, {"m": 1024}, names=ModelNames.ANY)
    reporting(second, {"n": 8192}, names=ModelNames.ANY)
    assert differ_somewhere([first, second])
    assert contexts_of([first, second], "unlisted") == [1024, 8192]


# --- placement


def uneven_pool(policy: str) -> Pool:
    """Two backends with one slot each; the second has the longer context."""
    pool = make_pool(["http://192.0.2.1:1", "http://192.0.2.1:2"], Deadlines(), policy=policy)
    for backend, tokens in zip(pool.backends, (SMALL, LARGE), strict=True):
        reported = replace(READY, capacity=1, contexts={"m": int(tokens)})
        pool.publish(backend, reported, own_at_poll=0, asked_at=pool.clock())
    return pool


def prompt_of(size: int) -> Prompt:
    body = json.dumps({"model": "m", "prompt": "x" * size, "max_tokens": 1}).encode()
    return read_prompt(b"/", "/v1/completions", b"", body, TokenSizes())


@pytest.mark.parametrize("policy", ["least_requests", "expected_time", "power_of_two"])
def test_request_that_waits_for_the_longer_context_blocks_no_other(policy: str) -> None:
    pool = uneven_pool(policy)
    small, large = pool.backends
    assert pool.placement.reads_prompts
    way = pool.placement.policy("m")
    short, long = (Requirements("m", prompt=prompt_of(size), policy=way) for size in (40, 6000))
    first = pool.lease(long)
    assert first is not None
    assert first.backend is large
    assert pool.lease(long) is None
    assert pool.placement.lane(long) != pool.placement.lane(short) == "m"
    other = pool.lease(short)
    assert other is not None
    assert other.backend is small
    other.close()
    assert pool.try_lease(long) is None
    first.close()
    second = pool.try_lease(long)
    assert second is not None
    assert second.backend is large


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
def test_draining_backend_with_the_longer_context_is_not_waited_for(policy: str) -> None:
    pool = uneven_pool(policy)
    small, large = pool.backends
    pool.set_draining(large)
    lease = pool.lease(Requirements("m", prompt=prompt_of(6000), policy=pool.placement.policy("m")))
    assert lease is not None
    assert lease.backend is small


def test_prompts_are_not_read_if_all_contexts_are_alike() -> None:
    pool = uneven_pool("least_requests")
    small, large = pool.backends
    pool.publish(small, large.health.reported, own_at_poll=0, asked_at=pool.clock())
    assert not pool.placement.reads_prompts


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
async def test_declined_request_does_not_move_to_a_backend_it_does_not_fit(policy: str) -> None:
    short, long = (b'{"model": "m", "max_tokens": 1, "prompt": "%b"}' % (b"x" * size) for size in (40, 6000))
    answers, declines = FakeEngine(answering(http_reply(b"{}"))), FakeEngine(answering(http_reply(b"busy", 503)))
    async with answers, declines, ForwardingFront(answers, declines, policy=policy) as proxy:
        for backend, tokens in zip(proxy.pool.backends, (SMALL, LARGE), strict=True):
            reported = replace(READY, contexts={"m": int(tokens)})
            proxy.pool.publish(backend, reported, own_at_poll=0, asked_at=proxy.pool.clock())
        refused = await proxy.post(long, path="/v1/completions")
        assert refused.startswith(b"HTTP/1.1 503")
        assert refused.endswith(b"busy")
        assert (await proxy.post(short, path="/v1/completions")).startswith(b"HTTP/1.1 200")
        assert not any(b"x" * 6000 in request for request in answers.requests)
