from __future__ import annotations

import base64
import hashlib
import re

import pytest

from support.fleet import Fleet
from support.live_proxy import Proxy
from support.ports import unused_url

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


async def test_browser_gets_the_page(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    reply = await proxy.http.get("/", headers={"accept": BROWSER})

    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["vary"] == "accept"
    assert reply.text.startswith("<!doctype html>")


@pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
async def test_program_gets_links_that_work(fleet: Fleet, accept: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)

    reply = await proxy.http.get("/", headers={"accept": accept})

    assert (reply.status_code, reply.headers["vary"]) == (200, "accept")
    links = reply.json()["links"]
    assert links.keys() == {"health", "models", "metrics", "docs", "chat"}
    for name, path in links.items():
        answer = await (proxy.http.post(path, json={}) if name == "chat" else proxy.http.get(path))
        assert answer.status_code == 200, name
    assert engine.asked[-1][:2] == ("POST", "/v1/chat/completions")


async def test_links_of_the_page_work_and_need_no_other_host(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    polls = set(engine.asked)
    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text.replace(engine.url, "")

    links = set(re.findall(r'(?:href|src)="(?!data:)([^"]*)"', page))

    assert links == {"docs", "redoc", "health", "v1/models", "metrics"}
    for link in links:
        assert (await proxy.http.get(f"/{link}")).status_code == 200
    assert set(engine.asked) == polls
    assert "fetch(\"health\"" in page  # fmt: skip
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []


async def test_page_may_run_its_own_script_and_nothing_else(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reply = await proxy.http.get("/", headers={"accept": BROWSER})

    policy = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))

    for element in ("script", "style"):
        (content,) = re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f"{element}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"\s(on[a-z]+|style)=", reply.text.partition("<script>")[0])


async def test_page_turns_no_answer_into_markup(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text

    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser|srcdoc", page)


async def table_of(proxy: Proxy) -> list[list[str]]:
    """The cells of the table for browsers without JavaScript."""
    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text
    (shown,) = re.findall(r"<noscript>(.*?)</noscript>", page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", shown)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


async def test_page_has_a_table_for_browsers_without_javascript(fleet: Fleet) -> None:
    engine, gone = await fleet.engine(processing=2, waiting=1), unused_url()
    engine.slots = 4
    proxy = await fleet.proxy(engine, gone)

    head, *rows = await table_of(proxy)

    assert head == ["Backend", "State", "Reason", "In flight", "Processing", "Waiting", "Models"]
    refused = "it cannot be reached, because nothing listens there: check that the engine runs, and its port"
    assert rows == [
        [engine.url, "Ready", "", "0 of 5", "2 of 4", "1", "m"],
        [gone, "Down", refused, "0", "\N{EN DASH}", "\N{EN DASH}", ""],
    ]


async def test_table_turns_no_answer_of_a_backend_into_markup(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(models=[{"id": "<script>alert(1)</script>&"}]))

    (row,) = (await table_of(proxy))[1:]

    assert row[-1] == "&lt;script&gt;alert(1)&lt;/script&gt;&amp;"


async def test_table_hides_addresses_as_health_does(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, health_details="key", api_keys=("me:0123456789abcdef",))

    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text

    assert engine.url not in page
    assert (await table_of(proxy))[1][0] == "backend-1"


async def test_page_shows_the_queue_of_the_proxy(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), max_queued_requests=7)

    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text

    assert "Queue of the proxy: 0 of 7." in page
