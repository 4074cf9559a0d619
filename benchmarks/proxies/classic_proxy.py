"""A typical first proxy: FastAPI and httpx, round robin over the engines, streamed replies.

It knows neither models nor loads, and passes every engine failure on to its client.
"""

# mypy: disable-error-code="import-not-found"
# (httpx is installed only in the environment that runs this.)

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

# Hop-by-hop fields, which a proxy does not forward (RFC 9110, section 7.6.1); httpx sets its own host.
_HOP_BY_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}

engines = itertools.cycle(os.environ["ENGINES"].split(","))
# Without httpx's limits of 100 concurrent requests and of five seconds for a token.
client = httpx.AsyncClient(
    timeout=httpx.Timeout(None), limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/{path:path}")
async def forward(path: str, request: Request) -> StreamingResponse:
    headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    asked = client.build_request("POST", f"{next(engines)}/{path}", headers=headers, content=await request.body())
    reply = await client.send(asked, stream=True)
    return StreamingResponse(
        reply.aiter_raw(),
        status_code=reply.status_code,
        headers={name: value for name, value in reply.headers.items() if name not in _HOP_BY_HOP},
        background=BackgroundTask(reply.aclose),
    )
