"""Chats, and many requests at once."""

from __future__ import annotations

from support.waiting import eventually
from ui.conftest import Show, StartFeed
from ui.console import Console

ANSWER = ".chat-log .assistant:last-child .words"


async def ask(console: Console) -> None:
    """Send a message, and see that the answer grows."""
    await console.value("location.hash = 'playground'")
    await console.becomes("document.querySelector('textarea') !== null")
    await console.enter("textarea", "Hello")
    lengths: set[int] = set()

    async def grows() -> bool:
        lengths.add(await console.value(f"document.querySelector('{ANSWER}')?.innerText.length ?? 0"))
        return len(lengths) > 3

    await eventually(grows)


async def test_answer_is_shown_as_it_comes_with_its_backend(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(2, {}))
    await ask(console)
    await console.shows("40 tokens", ".chat-log")
    facts = await console.text(".chat-log .assistant .soft")
    assert facts.startswith("gpu-")
    assert "first token after" in facts


async def test_answer_is_stopped(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(2, {})
    console = await show(server)
    await ask(console)
    await console.click("Stop")
    await console.shows("Stopped.", ".chat-log")
    await eventually(lambda: server.chats == 0)  # the connection is closed, too
    length = await console.value(f"document.querySelector('{ANSWER}').innerText.length")
    assert length < len("word 10 ") * 40


async def test_broken_answer_is_not_shown_as_complete(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(2, {})
    server.breaks_chats = True
    console = await show(server)
    await ask(console)
    await console.shows("The stream ended before the answer was complete.", ".chat-log .failure")


async def test_burst_shows_how_requests_spread(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(2, {})
    console = await show(server)
    await console.value("location.hash = 'playground'")
    await console.becomes("document.querySelector('#burst-number') !== null")
    await console.value("document.querySelector('#burst-number').value = 10")
    await console.click("Start")
    await console.shows("10 of 10 answered, 0 failed", ".burst-result")
    shares = await console.texts(".spread li")
    assert sum(int(share.split("\n")[1].split()[0]) for share in shares) == 10
    assert server.most_chats == 4  # over HTTP/1.1, as the page says
    assert "4 run at a time" in await console.text("#view")


async def test_no_command_can_end_its_own_quotes(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(2, {}))
    await console.value("location.hash = 'playground'")
    await console.becomes("document.querySelector('#burst-prompt') !== null")
    await console.value(
        "document.querySelector('#burst-prompt').focus(); document.querySelector('#burst-prompt').select()"
    )
    await console.type("'; rm -rf / #\u9375")
    await console.becomes("document.querySelectorAll('pre')[1].innerText.includes('rm -rf')")
    assert r"\u0027; rm -rf / #\u9375" in (await console.texts("pre"))[1]
