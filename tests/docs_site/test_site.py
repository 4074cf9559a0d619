"""Readers find their way through the site, on every screen, without a request to anyone else."""

from __future__ import annotations

import json
import re

import pytest

from docs_site.conftest import SITE, requested
from support.waiting import eventually
from ui.console import Console

_IS_LOADED = "document.readyState === 'complete' && document.querySelector('.md-content h1') !== null"
_SEARCH = "document.querySelector('.md-search__input')"


async def show(page: Console, url: str) -> None:
    await page.open(url)
    await arrived(page, url)


async def arrived(page: Console, url: str) -> None:
    """Wait until the browser shows ``url``."""

    async def is_there() -> bool:
        try:
            return bool(await page.value(f"location.href.split('#')[0] === {json.dumps(url)} && {_IS_LOADED}"))
        except AssertionError:  # the browser ends a script whose page is being left
            return False

    await eventually(is_there, seconds=60)


async def pages(page: Console) -> list[str]:
    """The URLs of all pages in the navigation, in its order."""
    links = "[...document.querySelectorAll('.md-nav--primary a.md-nav__link[href]')]"
    urls: list[str] = await page.value(f"{links}.map((one) => one.href.split('#')[0])")
    return list(dict.fromkeys(urls))


async def found(page: Console, text: str) -> list[str]:
    """The addresses that the search offers."""
    await page.value(f"{_SEARCH}.focus()")
    await page.value(f"{_SEARCH}.value = ''")
    await page.type(text)
    await page.becomes("document.querySelector('.md-search-result__link') !== null")
    links = "[...document.querySelectorAll('.md-search-result__link')]"
    return [re.sub(r"\?[^#]*", "", url) for url in await page.value(f"{links}.map((one) => one.href)")]


async def test_each_page_is_in_the_navigation_and_whole_on_a_phone(page: Console, address: str) -> None:
    listed = await pages(page)
    built = {str(file.parent.relative_to(SITE)) for file in SITE.rglob("index.html")}
    assert {url.removeprefix(address).strip("/") or "." for url in listed} == built

    await page.resize(390, 844, is_phone=True)
    wide, broken = {}, {}
    for url in listed:
        await show(page, url)
        images = "[...document.images].filter((one) => !(one.complete && one.naturalWidth > 0)).map((one) => one.src)"
        await page.becomes("[...document.images].every((one) => one.complete)")
        if lost := await page.value(images):
            broken[url] = lost
        if overflow := await page.overflow():
            wide[url] = overflow
    assert (broken, wide) == ({}, {})


async def test_nothing_is_requested_from_elsewhere(page: Console, address: str) -> None:
    for name in ("", "start/", "settings/", "project/README.zh-TW/"):
        await show(page, address + name)
    await found(page, "queue")
    server = address.rsplit("/", 2)[0]
    assert [url for url in requested(page) if not url.startswith(server)] == []
    texts = [file.read_text() for file in SITE.rglob("*.html")]
    loading = r'<(?:script|img|iframe|source)\b[^>]*\ssrc="(?:https?:)?//|<link\b[^>]*\shref="(?:https?:)?//'
    assert [found[0] for text in texts for found in re.finditer(loading, text)] == []


async def test_a_reader_goes_from_page_to_page(page: Console, address: str) -> None:
    await page.click_at(".md-content a[href='start/']")
    await arrived(page, f"{address}start/")
    await page.click_at(".md-footer__link--next")
    await arrived(page, f"{address}models/")
    assert await page.text(".md-content h1") in ("Models", "Models¶")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("MAX_QUEUED_REQUESTS", "settings/#max_queued_requests"),
        ("three minutes", "start/"),
        ("flush_interval", "behind-a-proxy/#caddy"),
        ("invalid_api_key", "troubleshooting/"),
        ("疑難排解", "zh-TW/troubleshooting/"),
        ("憑證", "zh-TW/troubleshooting/"),  # in the middle of a sentence
        ("負載平衡", "zh-TW/"),  # several characters
    ],
)
async def test_search_finds_the_place(page: Console, text: str, place: str) -> None:
    offered = await found(page, text)
    assert any(place in one for one in offered[:10]), offered


async def test_code_can_be_copied(page: Console, address: str) -> None:
    await show(page, f"{address}start/")
    button = ".md-content button[data-md-type=copy]"
    await page.becomes(f"document.querySelector('{button}') !== null")
    await page.browser("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    place = f"document.querySelector('{button}').getBoundingClientRect()"
    x, y = await page.value(f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({place})")
    for what in ("mousePressed", "mouseReleased"):  # a script's click is no user's, so it may not copy
        await page.command("Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", clickCount=1)
    await page.becomes("navigator.clipboard.readText().then((text) => text.trim() === 'scripts/run.sh')")


async def test_dark_and_light_follow_the_system_and_the_switch(page: Console, address: str) -> None:
    scheme = "document.body.getAttribute('data-md-color-scheme')"
    for preferred, expected, other in (("light", "default", "slate"), ("dark", "slate", "default")):
        await page.prefer(scheme=preferred)
        await page.value("localStorage.clear()")
        await show(page, address)
        await page.becomes(f"{scheme} === '{expected}'")
        await page.value("document.querySelector('.md-header__option label:not([hidden])').click()")
        await page.becomes(f"{scheme} === '{other}'")


async def test_pages_name_their_language(page: Console, address: str) -> None:
    for name, language in (("endpoints", "en"), ("zh-TW/endpoints", "zh-TW"), ("project/README.zh-TW", "zh-TW")):
        await show(page, f"{address}{name}/")
        assert await page.value("document.documentElement.lang") == language


def test_pages_of_the_root_are_on_the_site() -> None:
    names = {folder.name for folder in (SITE / "project").iterdir()}
    assert names == {"CONTRIBUTING", "SECURITY", "CHANGELOG", "README.zh-TW"}
    assert "../../settings/#api_keys" in (SITE / "project" / "SECURITY" / "index.html").read_text()
