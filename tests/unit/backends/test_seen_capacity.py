"""The capacity of an engine that reports none follows from its running and waiting requests at successive polls."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.seen_capacity import SeenCapacity


@pytest.mark.parametrize(
    ("polls", "capacity"),
    [
        pytest.param([(2, 4)], None, id="one poll does not show whether more will run"),
        pytest.param([(2, 4), (2, 4)], 2, id="full"),
        pytest.param([(2, 0), (2, 0)], None, id="nothing waits"),
        pytest.param([(10, 90), (30, 70), (50, 50)], None, id="reads a burst of prompts"),
        pytest.param([(10, 90), (30, 70), (30, 60)], 30, id="has read as many as it has room for"),
        pytest.param([(30, 20), (33, 20)], 33, id="full, and answers of different lengths"),
        # A long prompt takes the whole token budget of a step, so fewer requests run than before.
        pytest.param([(6, 0), (1, 5), (1, 5)], 6, id="held up by a long prompt"),
        pytest.param([(16, 2), (16, 2)], None, id="the others wait for the next step only"),
        pytest.param([(16, 3), (16, 3)], 16, id="too many for the next step"),
        pytest.param([(6, 5), (6, 0), (6, 5)], None, id="nothing waited in between"),
        pytest.param([(0, 3), (0, 3)], None, id="stuck"),
        pytest.param([(None, 3), (None, 3)], None, id="running requests unknown"),
        pytest.param([(3, None), (3, None)], None, id="waiting requests unknown"),
    ],
)
def test_seen_capacity(polls: list[tuple[float | None, float | None]], capacity: int | None) -> None:
    seen = SeenCapacity()

    assert [seen.look(*poll) for poll in polls][-1] == capacity
