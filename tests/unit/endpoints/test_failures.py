"""Failures of own endpoints are answered in the words of this proxy."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from fastapi import FastAPI, Query

from inference_engine_proxy_server.endpoints.asgi_bridge import AsgiBridge
from inference_engine_proxy_server.endpoints.failures import answer_failures
from support.fakes.front import Front


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("seconds=abc", "seconds: must be a number."),
        ("seconds=-1", "seconds: must be at least 0.0."),
        ("seconds=1e9", "seconds: must be at most 3600.0."),
        ("limit=1.5", "limit: must be a whole number."),
    ],
)
async def test_a_wrong_query_parameter_is_explained_without_terms_of_python(query: str, message: str) -> None:
    app = FastAPI()
    answer_failures(app)

    @app.get("/")
    async def page(seconds: Annotated[float, Query(ge=0, le=3600)] = 0, limit: int = 0) -> None:
        pass

    async with Front(AsgiBridge(app).answer) as front:
        client = await front.connect()
        reply = await client.ask(b"GET /?%b HTTP/1.1\r\nHost: a\r\n\r\n" % query.encode())
    assert (reply.status, json.loads(reply.body)["error"]["message"]) == (400, message)
