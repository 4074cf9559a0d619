from __future__ import annotations

from inference_engine_proxy_server.dashboard.live_requests import MOST_SHOWN, LiveRequest, Phase, longest


def request(name: str, phase: Phase, age: float) -> LiveRequest:
    return LiveRequest(
        id=name, model=None, alias=None, key=None, path="/", backend=None, why=None, shadow=None, phase=phase,
        tokens=None, tokens_per_second=None, age=age, position=None, expected_wait=None, resumes=0, worker=0,
    )  # fmt: skip


def test_the_longest_come_first() -> None:
    requests = [request("a", "decode", 1), request("b", "queued", 5), request("c", "prefill", 3)]

    assert [one.id for one in longest(requests)] == ["b", "c", "a"]


def test_of_too_many_the_longest_of_each_phase_are_kept() -> None:
    many = [request(f"decode-{age}", "decode", 1000 + age) for age in range(900)]
    few = [request(f"queued-{age}", "queued", age) for age in range(100)]

    shown = {one.id for one in longest([*many, *few])}

    assert len(shown) == MOST_SHOWN
    assert {one.id for one in few} <= shown
    assert "decode-899" in shown
    assert "decode-0" not in shown
