"""``mlx_lm.server``, beyond the contract of all engines."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import Probe, Reply
from inference_engine_proxy_server.backends.mlx_lm import MlxLmBackend
from recorded import answering, recorded

REAL = {"/health": recorded("mlx-lm", "health"), "/v1/models": recorded("mlx-lm", "v1-models")}
FIELDS = recorded("mlx-lm", "v1-models").fields


def probe(**changed: Reply) -> Probe:
    return Probe(answering({**REAL, **{f"/{path.replace('_', '/')}": reply for path, reply in changed.items()}}))


async def test_it_is_recognized_even_without_a_list_of_models() -> None:
    assert await MlxLmBackend.recognizes(probe(v1_models=recorded("mlx-lm", "v1-models-no-cache")))


@pytest.mark.parametrize(
    "changed",
    [
        {"health": Reply(200, b'{"status": "healthy"}')},
        {"v1_models": Reply(200, b'{"data":[{"id":"m","object":"model","created":1,"owned_by":"me"}]}', FIELDS)},
        {"v1_models": Reply(200, recorded("mlx-lm", "v1-models").body, b"Server: uvicorn\r\n")},
    ],
)
async def test_a_server_that_differs_in_one_mark_is_another_one(changed: dict[str, Reply]) -> None:
    assert not await MlxLmBackend.recognizes(probe(**changed))
