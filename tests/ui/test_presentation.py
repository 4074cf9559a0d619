"""Languages, themes, a phone, and screen readers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ui.conftest import Show, StartFeed
from ui.console import Console
from ui.feed_server import ADMIN_KEY

VIEWS = ("fleet", "requests", "events", "history", "usage", "decisions", "playground", "settings")
# What axe-core finds is serious from the second level on. https://github.com/dequelabs/axe-core
SERIOUS = ("serious", "critical")
AXE = Path(os.environ.get("AXE", Path(__file__).parents[2] / ".venv-ui/node_modules/axe-core/axe.min.js"))
# Texts of the page in the Latin alphabet alone: contents, labels, hints and placeholders.
ENGLISH_WORDS = r"""
[["text", "textContent"], ["label", "ariaLabel"], ["hint", "title"], ["ghost", "placeholder"]]
  .flatMap(([kind, property]) => [...document.querySelectorAll(`[data-${kind}]`)].map((one) => one[property]))
  .concat(document.querySelector("#summary .sentence").textContent)
  .filter((words) => /[a-z]{3}/.test(words) && !/[\u4e00-\u9fff]/.test(words))
"""


async def views(console: Console) -> Any:
    """Show one view after the other."""
    for name in VIEWS:
        await console.value(f"location.hash = '{name}'")
        await console.becomes(f"document.querySelector('#views [aria-current]').dataset.view === '{name}'")
        await console.becomes("document.querySelector('#view').firstChild !== null")
        if name in ("decisions", "settings"):
            await console.becomes("document.querySelectorAll('#view tbody tr').length > 0")
        yield name


async def test_page_speaks_chinese_to_those_who_read_it(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.prefer(language="zh-TW")
    await console.reload()
    await console.shows("40 個後端中有 2 個無法運作")
    assert await console.value("document.documentElement.lang") == "zh-TW"


async def test_no_english_words_are_left_in_chinese(start_feed: StartFeed, show: Show) -> None:
    """Except names, units, and the sentences of the proxy, which are marked as English."""
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await console.press("l")
    await console.shows("無法運作", "#summary")
    left: dict[str, list[str]] = {}
    async for name in views(console):
        left[name] = await console.value(ENGLISH_WORDS)
    assert left == {name: ["English"] for name in VIEWS}


async def test_language_is_switched_and_remembered(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.click("中文")
    await console.shows("後端", "#views")
    await console.reload()
    await console.shows("後端", "#views")
    await console.click("English")
    await console.shows("Fleet", "#views")


async def test_theme_follows_the_system_or_the_choice(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    colour = "getComputedStyle(document.body).backgroundColor"
    light = await console.value(colour)
    await console.prefer(scheme="dark")
    dark = await console.value(colour)
    assert dark != light
    await console.press("t")
    assert await console.value(colour) == light  # chosen
    await console.reload()
    assert await console.value(colour) == light
    await console.press("t")
    assert await console.value(colour) == dark


@pytest.mark.parametrize("language", ["en-GB", "zh-TW"])
async def test_phone_needs_no_horizontal_scrolling(start_feed: StartFeed, show: Show, language: str) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await console.resize(390, 844, is_phone=True)
    await console.prefer(language=language)
    await console.reload()
    overflow = {name: await console.overflow() async for name in views(console)}
    assert overflow == dict.fromkeys(VIEWS, 0)
    await console.value("location.hash = 'fleet'")
    await console.becomes("document.querySelector('.fleet button.name') !== null")
    await console.value("document.querySelector('.fleet button.name').click()")
    await console.becomes("document.querySelector('.panel') !== null")
    assert await console.overflow() == 0
    assert await console.value("document.querySelector('.panel').scrollWidth <= 390")


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    return AXE.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(start_feed: StartFeed, show: Show, axe: str, scheme: str) -> None:
    console = await show(start_feed())
    await console.prefer(scheme=scheme)
    await console.command("Page.setBypassCSP", enabled=True)
    await console.reload()
    await console.sign_in(ADMIN_KEY)
    await console.value(axe + ";0")
    found: dict[str, list[str]] = {}
    async for name in views(console):
        found[name] = await serious(console)
    await console.value("location.hash = 'fleet'")
    await console.becomes("document.querySelector('.fleet button.name') !== null")
    await console.value("document.querySelector('.fleet button.name').click()")
    await console.becomes("document.querySelector('.panel') !== null")
    found["panel"] = await serious(console)
    await console.click("Drain…")
    await console.becomes("document.querySelector('.question') !== null")
    found["question"] = await serious(console)
    assert found == {name: [] for name in (*VIEWS, "panel", "question")}


async def serious(console: Console) -> list[str]:
    """The serious findings of axe-core, each with an element."""
    result = await console.value(
        "axe.run().then(({ violations }) => violations.map(({ id, impact, nodes }) =>"
        " ({ id, impact, html: nodes[0].html, why: nodes[0].failureSummary })))"
    )
    return [json.dumps(one) for one in result if one["impact"] in SERIOUS]


async def test_axe_finds_what_is_wrong(start_feed: StartFeed, show: Show, axe: str) -> None:
    """Otherwise the test above would prove nothing."""
    console = await show(start_feed(2))
    await console.command("Page.setBypassCSP", enabled=True)
    await console.reload()
    await console.value(axe + ";0")
    await console.value("document.querySelector('#views').append(document.createElement('button'))")
    assert [json.loads(one)["id"] for one in await serious(console)] == ["button-name"]


HEARD = """(() => {
  window.heard = [];
  const place = document.querySelector("#announcements");
  const changes = { childList: true, characterData: true, subtree: true };
  new MutationObserver(() => heard.push(place.textContent)).observe(place, changes);
})()"""
LIVE = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((one) => one.id)"


async def test_only_what_lasts_is_announced(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3, {})
    console = await show(server)
    await console.value(HEARD)
    assert await console.value(LIVE) == ["announcements"]
    server.fleet.states[2] = "down"
    await console.becomes("window.heard.length > 0")
    assert await console.value("window.heard") == ["1 of 3 backends does not work: backend-2."]
