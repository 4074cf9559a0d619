from __future__ import annotations

import re
from pathlib import Path

import pytest
from httpx2 import Response

import inference_engine_proxy_server.endpoints.page
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.ports import unused_url

PAGE = Path(inference_engine_proxy_server.endpoints.page.__file__).with_suffix("")
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
    assert ("POST", "/v1/chat/completions") in [one[:2] for one in engine.asked]


async def files_of(proxy: Proxy) -> dict[str, Response]:
    """The files that the page and its modules name, by their paths, each from the proxy."""
    found: dict[str, Response] = {}
    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text
    left = set(re.findall(r'(?:href|src)="(dashboard/page/[^"]*)"', page))
    while left:
        path = left.pop()
        found[path] = await proxy.http.get(f"/{path}")
        folder = path.rpartition("/")[0]
        left |= {f"{folder}/{name}" for name in re.findall(r'from "\./([^"]+)"', found[path].text)} - found.keys()
    return found


async def test_every_file_of_the_page_is_served_and_needed(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    polls = set(engine.asked)

    found = await files_of(proxy)

    assert {path: reply.status_code for path, reply in found.items()} == dict.fromkeys(found, 200)
    types = {path.rpartition(".")[2]: reply.headers["content-type"] for path, reply in found.items()}
    assert types == {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    assert found.keys() == {
        f"dashboard/page/{one.relative_to(PAGE)}" for one in PAGE.rglob("*.*") if one.name != "index.html"
    }
    assert set(engine.asked) <= polls


async def test_links_of_the_page_work_below_a_path_prefix(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    page = (await proxy.http.get("/", headers={"accept": BROWSER})).text.replace(engine.url, "")

    links = set(re.findall(r'(?:href|src)="([^"#]+)"', page))

    assert not any(link.startswith("/") or ":" in link for link in links)
    for link in links:
        assert (await proxy.http.get(f"/{link}")).status_code == 200, link
    texts = [page, *(reply.text for reply in (await files_of(proxy)).values())]
    assert not [text for text in texts if re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)]
    assert not [text for text in texts if re.search(r"""(fetch\(|PATH = |url\()["'`]/""", text)]


async def test_files_are_checked_at_each_load_and_sent_once(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    first = await proxy.http.get("/dashboard/page/app.js")

    again = await proxy.http.get("/dashboard/page/app.js", headers={"if-none-match": first.headers["etag"]})
    other = await proxy.http.get("/dashboard/page/app.js", headers={"if-none-match": '"0"'})

    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (other.status_code, other.content) == (200, first.content)


async def test_page_and_its_files_need_no_key(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), api_keys=("me:0123456789abcdef",))

    found = await files_of(proxy)

    assert len(found) > 30
    assert {reply.status_code for reply in found.values()} == {200}


async def test_page_may_run_its_own_files_and_nothing_else(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reply = await proxy.http.get("/", headers={"accept": BROWSER})

    policy = dict(rule.strip().partition(" ")[::2] for rule in reply.headers["content-security-policy"].split(";"))

    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "",
    }
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"\s(on[a-z]+|style)=|<style|<script[^>]*>[^<]", reply.text)


@pytest.mark.parametrize("file", sorted(PAGE.rglob("*.js")), ids=lambda one: one.name)
def test_page_turns_no_answer_into_markup(file: Path) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser|srcdoc|\.style\b", file.read_text()
    )


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
