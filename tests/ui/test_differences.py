"""Replicas of a model that differ are a calm notice, in both languages."""

from __future__ import annotations

from inference_engine_proxy_server.fleet.difference import Aspect, Difference, Value
from ui.conftest import Show, StartFeed
from ui.feed_server import ADMIN_KEY

NAMES = {f"http://b{number}": f"http://gpu-{number}:8080" for number in range(1, 9)}
CONTEXT = Difference("qwen3", Aspect.CONTEXT, True, (Value("4,096", ("http://b2",)),), "8,192")
SLOTS = Difference("qwen3", Aspect.SLOTS, False, (Value("4", tuple(NAMES)[:6]), Value("2", tuple(NAMES)[6:])), None)


async def test_differences_are_a_notice_and_a_list(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(10, {})
    server.fleet.differences = [one.as_json(NAMES) for one in (CONTEXT, SLOTS)]
    console = await show(server)
    await console.shows("2 differences between backends of the same model", "#summary")
    await console.click_at(".differences summary")
    lines = await console.texts(".differences li")
    assert lines == [
        "qwen3, context in tokens: gpu-2:8080 = 4,096; the others = 8,192. Longer prompts have fewer backends.",
        "qwen3, slots: gpu-1:8080, gpu-2:8080, gpu-3:8080, gpu-4:8080 and 2 more = 4; gpu-7:8080, gpu-8:8080 = 2. "
        "That is right if their hardware differs.",
    ]

    await console.click("中文")
    chinese = (await console.texts(".differences li"))[0]
    assert chinese.startswith("qwen3 的上下文長度")
    assert chinese.endswith("其他為 8,192。較長的提示可用的後端較少。")


async def test_only_warnings_change_the_sentence_about_the_fleet(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(2, {})
    server.fleet.queue, server.fleet.differences = 0, [SLOTS.as_json(NAMES)]
    console = await show(server)
    await console.shows("1 difference between", "#summary")
    assert "differ" not in await console.text("#summary .sentence")
    server.fleet.differences = [CONTEXT.as_json(NAMES)]
    await console.shows("those of qwen3 differ", "#summary .sentence")
    assert await console.value("document.querySelector('#summary').className") == "is-notice"
    server.fleet.differences = []
    await console.becomes("document.querySelector('.differences').hidden")


async def test_the_end_of_a_long_name_is_visible(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(10, {})
    server.fleet.prefix = "a-host-name-that-is-longer-than-any-column.example.internal:80"
    console = await show(server)
    await console.sign_in(ADMIN_KEY)
    await console.shows("internal:8010")
    start, end = await console.value(
        "(() => { const name = document.querySelector('.fleet button.name'), box = name.getBoundingClientRect();"
        " const text = name.firstChild.getBoundingClientRect();"
        " return [text.left - box.left, text.right - box.right]; })()"
    )
    assert (start < -1, abs(end) <= 1) == (True, True), (start, end)
