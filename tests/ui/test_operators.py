"""What operators see and do, after they have entered ADMIN_KEY."""

from __future__ import annotations

import re

from support.waiting import eventually
from ui.conftest import Show, StartFeed
from ui.console import Console
from ui.feed_server import ADMIN_KEY

OPERATORS_VIEWS = ("requests", "usage", "decisions", "settings")


async def go(console: Console, view: str) -> None:
    """Show a view."""
    await console.value(f"location.hash = '{view}'")
    await console.becomes(f"document.querySelector('#views [aria-current]').dataset.view === '{view}'")


async def open_backend(console: Console, name: str) -> None:
    """Open a backend from the table."""
    await console.becomes(f"document.querySelector('tbody[data-name={name}]') !== null")
    await console.value(f"document.querySelector('tbody[data-name={name}] button.name').click()")
    await console.becomes("document.querySelector('dialog.panel') !== null")


async def test_views_of_operators_ask_for_the_key(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    for view in OPERATORS_VIEWS:
        await go(console, view)
        await console.shows("Enter ADMIN_KEY to see it.", "#view")
    assert "gpu-17" not in await console.text("body")


async def test_views_of_operators_say_that_they_are_off(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(admin_key=None))
    for view in OPERATORS_VIEWS:
        await go(console, view)
        await console.shows("This view is off here, because ADMIN_KEY is not set", "#view")
    assert not await console.value(
        "[...document.querySelectorAll('button')].some((one) => one.innerText === 'Sign in' && one.checkVisibility())"
    )


async def test_wrong_key_is_refused_with_a_reason(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.click("Sign in")
    await console.enter("dialog input", "wrong")
    await console.shows("This is not ADMIN_KEY.", "dialog")
    await console.enter("dialog input", "\u9375")
    await console.shows("A key consists of visible ASCII characters.", "dialog")
    assert await console.value("Object.values(sessionStorage).length") == 0
    console.events.clear()  # the browser itself logs the 401


async def test_key_is_kept_for_this_tab_only_and_can_be_forgotten(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await console.shows("gpu-17")
    assert ADMIN_KEY in await console.value("Object.values(sessionStorage)")
    assert ADMIN_KEY not in await console.value(
        "JSON.stringify(Object.entries(localStorage)) + document.cookie + location.href"
    )
    await console.reload()
    await console.shows("gpu-17")

    await console.click("Sign out")

    await console.shows("backend-17")
    assert await console.value("Object.values(sessionStorage).length") == 0


async def test_backend_is_drained_and_undrained_after_confirmations(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(6, {})
    console = await show(server)
    await console.sign_in(ADMIN_KEY)
    await open_backend(console, "gpu-2")
    await console.click("Drain…")
    await console.shows("gpu-2 gets no new requests, and finishes the", ".question")
    await console.click("Do nothing")
    assert server.fleet.states == {}

    await console.click("Drain…")
    await console.click("Drain")
    await console.shows("Draining", ".panel")
    assert server.fleet.states == {2: "draining"}
    await console.click("Undrain…")
    await console.click("Undrain")

    await console.becomes("!document.querySelector('.panel').innerText.includes('Draining')")
    assert server.fleet.states == {}


async def test_requests_are_moved_after_a_confirmation(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(6, {})
    console = await show(server)
    await console.sign_in(ADMIN_KEY)
    await open_backend(console, "gpu-2")
    await console.click("Drain and move requests…")
    await console.shows("streams continue there after a pause", ".question")
    await console.click("Drain and move")
    await console.shows("Draining", ".panel")
    assert server.commands == ["/admin/backends/gpu-2/drain?move=true"]


async def test_request_is_cancelled_after_a_confirmation(start_feed: StartFeed, show: Show) -> None:
    server = start_feed()
    console = await show(server)
    await console.sign_in(ADMIN_KEY)
    await go(console, "requests")
    await console.shows("8a88-4", "#view")
    await console.shows("The shadow policy would have chosen gpu-01.", "#view")
    await console.click("Cancel request 8a88-4?")
    await console.shows("Its client gets an error", ".question")
    await console.click("Cancel the request")
    await console.becomes("!document.querySelector('#view').innerText.includes('8a88-4\\t')")
    assert server.fleet.cancelled == {"8a88-4"}


async def test_queue_shows_positions_waits_and_keys(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await go(console, "requests")
    await console.shows("17 requests wait, at most 512 may; a new one would wait about 3.5 s.", "#view")
    rows = await console.texts(".queue tbody tr")
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert await console.texts(".by-key li") == ["agents\n5", "batch\n12"]


async def test_decisions_show_every_candidate_with_its_terms(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await go(console, "decisions")
    await console.becomes("document.querySelectorAll('.decisions details').length === 12")
    opened = ".decisions details[open]"
    assert len(await console.texts(f"{opened} tbody tr")) == 6
    head = await console.texts(f"{opened} thead th")
    assert head[:5] == ["Candidate", "Compared", "Cached tokens", "Wait for a slot", "Earlier prompts"]
    widths = await console.value(
        f"[...document.querySelectorAll('{opened} tbody tr')].map((row) =>"
        " [...row.querySelectorAll('rect')].reduce((sum, one) => sum + Number(one.getAttribute('width')), 0))"
    )
    assert max(widths) > 99
    assert widths[0] < widths[-1]  # the best one comes first
    await console.shows("34 more candidates are not listed.", opened)
    await console.shows("The shadow policy least_requests would have chosen gpu-", opened)


async def test_settings_show_where_values_come_from(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await go(console, "settings")
    await console.shows("METRICS_CACHE_TTL_SECONDS", "#view")
    assert "********" in await console.text("#view")
    await console.click_at("#only-changed")
    assert [row.split()[0] for row in await console.texts(".settings tbody tr")] == ["BALANCING_POLICY", "ADMIN_KEY"]


async def test_usage_and_events_are_shown(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.sign_in(ADMIN_KEY)
    await go(console, "usage")
    await console.shows("qwen3-32b", "#view")
    assert "71M" in await console.text("#view")
    await go(console, "events")
    await console.shows("gpu-03 continues a stream that gpu-17 broke after 214 tokens.", "#view")
    await console.shows("38 times", "#view")
    await console.press("/")
    await console.type("frozen")
    await console.becomes("document.querySelectorAll('#view .events li').length === 1")


async def test_history_is_read_with_the_arrow_keys(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await go(console, "history")
    await console.becomes("document.querySelectorAll('.chart').length === 6")
    assert "now" in await console.value("document.querySelector('.chart svg').ariaLabel")
    latest = await console.text(".chart figcaption")
    await console.value("document.querySelector('.chart svg').focus()")
    for _ in range(20):
        await console.press("ArrowLeft")
    assert await console.text(".chart figcaption") != latest


async def test_everything_is_reached_with_the_keyboard(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(6, {})
    console = await show(server)
    await console.press("o")
    await console.type(ADMIN_KEY)
    await console.press("Enter")
    await console.shows("gpu-3")
    await eventually(lambda: console.value("document.querySelector('dialog') === null"))
    await console.press("j")
    await console.press("ArrowDown")
    await console.press("ArrowDown")
    assert await console.value("document.activeElement.innerText") == "gpu-3"
    await console.press("Enter")
    await console.shows("gpu-3", ".panel h2")
    for _ in range(12):
        await console.press("Tab")
        if await console.value("document.activeElement.innerText") == "Drain…":
            break
    await console.press("Enter")
    await console.shows("Drain gpu-3?", ".question")
    await console.press("Tab")
    assert await console.value("document.activeElement.innerText") == "Drain"
    assert await console.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    await console.press("Enter")
    await console.shows("Draining", ".panel")
    await console.press("Escape")
    await console.becomes("document.querySelector('dialog') === null")
    assert await console.value("document.activeElement.innerText") == "gpu-3"  # where it came from
    await console.press("?")
    await console.shows("Keyboard shortcuts", ".shortcuts")
    assert server.fleet.states == {3: "draining"}


async def test_what_is_unknown_is_a_dash_in_every_view(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(6, {2: "down"})
    server.knows_nothing = True
    console = await show(server)
    await console.sign_in(ADMIN_KEY)
    for view in ("fleet", "requests", "events", "history", "usage"):
        await go(console, view)
        await console.becomes("document.querySelector('#view').firstChild !== null")
        shown = await console.text("body")
        assert re.findall("NaN|null|undefined|Infinity", shown) == [], view
    await go(console, "fleet")
    await open_backend(console, "gpu-1")
    facts = set(await console.texts(".panel dd"))
    assert facts - {"\N{EN DASH}", "\N{EN DASH} / \N{EN DASH}"} == {"llama-3.3-70b"}
    cells = set(await console.texts(".fleet [data-name=gpu-1] td"))
    assert cells - {"", "\N{EN DASH}", "\N{EN DASH} \N{EN DASH}"} <= {"Ready", "Busy", "llama-3.3-70b", "0/\N{EN DASH}"}
