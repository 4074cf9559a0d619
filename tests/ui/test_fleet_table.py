"""The fleet: what is wrong comes first, and nothing moves under the pointer."""

from __future__ import annotations

import pytest

from support.waiting import eventually
from ui.conftest import Show, StartFeed
from ui.console import Console
from ui.feed_server import PROBLEMS

NAMES = ".fleet button.name"


async def order(console: Console) -> list[str]:
    """The names of the backends, from top to bottom."""
    return [name.removeprefix("gpu-").removeprefix("backend-") for name in await console.texts(NAMES)]


async def choose(console: Console, label: str, option: str) -> None:
    """Choose an option of a list."""
    await console.value(
        f"(() => {{ const list = document.querySelector('select[aria-label=\"{label}\"]');"
        f" list.value = '{option}'; list.dispatchEvent(new Event('change')); }})()"
    )


async def test_first_screen_says_what_is_wrong_and_where(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.shows("2 of 40 backends do not work: backend-17, backend-23.", "#summary")

    top = await console.value(
        "[...document.querySelectorAll('.fleet tbody')].filter((one) => one.getBoundingClientRect().bottom < 400)"
        ".slice(0, 5).map((one) => ['.state', '.reason'].map((name) => one.querySelector(name).innerText.trim()))"
    )

    assert [state for state, _ in top] == ["Down", "Frozen", "Suspect", "Draining", "Starting"]
    assert top[0][1] == "It cannot be reached, because nothing listens there: check that the engine runs, and its port."
    assert await console.value("document.querySelectorAll('.map g').length") == 40
    shapes = await console.value("[...document.querySelectorAll('.map path')].map((one) => one.getAttribute('d'))")
    assert len(set(shapes)) >= len(PROBLEMS) + 1  # each state has its own shape


async def test_healthy_fleet_of_two_says_so(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(2))
    server_states = await console.texts(".fleet .state")
    assert set(server_states) <= {"Ready", "Busy"}
    assert "backend" in (await console.text("#summary .sentence"))
    assert await console.value("document.querySelector('#summary').className") in ("is-ok", "is-notice")


async def test_numbers_follow_the_feed(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    seen: set[str] = set()

    async def changes() -> bool:
        seen.add("|".join(await console.texts(".fleet td")))
        return len(seen) >= 3

    await eventually(changes, 20)


async def test_columns_sort_in_both_directions_and_back(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(10, {}))
    await console.click("Backend")
    assert (await order(console))[:3] == ["1", "2", "3"]
    assert await console.value("document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    await console.click("Backend")
    assert (await order(console))[0] == "10"
    await console.click("Backend")
    assert await console.value("document.querySelector('th[aria-sort]')") is None


async def test_filter_finds_by_any_words(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed())
    await console.press("/")
    await console.type("vllm down")
    await console.becomes(f"document.querySelectorAll('{NAMES}').length === 1")
    assert await order(console) == ["17"]
    await console.shows("1 of 40 backends")
    await console.type(" nothing")
    await console.becomes(f"document.querySelectorAll('{NAMES}').length === 1")  # it is in the reason
    await console.type(" at all xyz")
    await console.shows("No backend matches the filter.")


@pytest.mark.parametrize(("group", "first"), [("model", "gemma-3-27b"), ("tier", "Tier 1"), ("state", "Busy")])
async def test_groups_have_titles_with_their_problems(
    start_feed: StartFeed, show: Show, group: str, first: str
) -> None:
    states = {2: "down", 3: "busy"}
    console = await show(start_feed(12, states))
    await choose(console, "Group by", group)
    await console.becomes("document.querySelectorAll('.fleet .group').length > 1")
    titles = await console.texts(".fleet .group")
    assert titles[0].startswith(first)
    assert any("1 with problems" in title for title in titles)
    assert await console.value(f"document.querySelectorAll('{NAMES}').length") == 12


async def test_rows_stay_while_the_pointer_is_on_the_table(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(20, {})
    console = await show(server)
    await console.hover(".fleet tbody:nth-of-type(10)")
    await console.becomes("document.querySelector('.fleet').matches(':hover')")
    before = await order(console)

    server.fleet.states[15] = "down"

    await console.shows("1 of 20 backends does not work: backend-15.", "#summary")
    assert await order(console) == before
    await console.shows("The order has changed; rows move when you leave the table.")
    await console.hover("#bar h1")
    await console.becomes(f"document.querySelector('{NAMES}').innerText === 'backend-15'")


async def test_widths_do_not_depend_on_values(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(8, {})
    console = await show(server)
    places = "[...document.querySelectorAll('.fleet thead th, #views a')].map((one) => one.getBoundingClientRect().x)"
    before = await console.value(places)

    server.fleet.states.update(dict.fromkeys(range(1, 9), "frozen"))

    await console.shows("8 of 8 backends do not work")
    assert await console.value(places) == before


async def test_row_that_did_not_change_is_not_touched(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(4, dict.fromkeys(range(1, 5), "down"))
    server.fleet.states.pop(1)
    console = await show(server)
    await console.value(
        "(() => { window.touched = new Set(); new MutationObserver((all) => all.forEach((one) =>"
        " touched.add((one.target.parentElement ?? one.target).closest('tbody')?.dataset.name)))"
        ".observe(document.querySelector('.fleet'), { subtree: true, childList: true, characterData: true,"
        " attributes: true }); })()"
    )

    async def only_one_is_touched() -> bool:
        await console.value("window.touched.clear()")
        await console.becomes("window.touched.has('backend-1')")
        return bool(await console.value("[...window.touched].filter(Boolean).length === 1"))

    await eventually(only_one_is_touched)  # once a minute, others have a new age
