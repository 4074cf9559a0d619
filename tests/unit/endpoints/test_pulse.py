"""The stream that shows whether proxies in front hold streams back."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack

from inference_engine_proxy_server.endpoints.pulse import BEATS, PAUSE_SECONDS
from support.fleet import Fleet
from support.http_client import Call, send

PATH = "/dashboard/pulse"


async def test_events_come_one_by_one_with_the_time_and_one_name_of_the_proxy(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), api_keys="a:0123456789abcdef")
    began_at = time.monotonic()
    async with Call(proxy.url, PATH) as call:
        call.send()
        assert await call.head() == 200
        assert call.headers["content-type"].startswith("text/event-stream")
        assert "x-accel-buffering" not in call.headers  # engines do not send it either
        beats = []
        while event := await call.event():
            beats.append(json.loads(event.removeprefix(b"data: ")))
            assert len(event) < 100
    assert len(beats) == BEATS
    assert time.monotonic() - began_at >= BEATS * PAUSE_SECONDS * 0.9
    assert len({beat["instance"] for beat in beats}) == 1
    times = [beat["at"] for beat in beats]
    assert times == sorted(times)
    assert times[-1] - times[0] >= (BEATS - 1) * PAUSE_SECONDS * 0.9


async def test_the_number_of_readers_is_limited(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    async with AsyncExitStack() as stack:
        for _ in range(8):
            call = await stack.enter_async_context(Call(proxy.url, PATH))
            call.send()
            assert await call.head() == 200
            assert await call.event()
        refused = await send(proxy.url, PATH)
        assert (refused.status, refused.json["error"]["code"]) == (503, "too_many_viewers")
        async with Call(proxy.url, PATH, method="HEAD") as call:
            call.send()
            assert await call.head() == 200
