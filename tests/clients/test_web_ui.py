"""The web UI of llama.cpp works through the proxy, and sees one model.

The servers have it built in, and serve it under ``/`` and ``/index.html``. The proxy has its own page at ``/``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from clients.browser import Page, opened
from support.engine import Engine
from support.llama_server import LlamaServer
from support.program import Proxy, started
from support.waiting import eventually

pytestmark = pytest.mark.clients

PATIENCE_SECONDS = 60
KEY = "sk-0123456789abcdef"
ANSWER = "[aria-label='Assistant message with actions']"
HAS_INSTALLED = "navigator.serviceWorker.getRegistration().then((one) => one?.active?.state === 'activated')"

StartProxy = Callable[..., Coroutine[None, None, Proxy]]


@pytest.fixture(scope="module")
def servers(slow_model: Path) -> Iterator[list[LlamaServer]]:
    """Two servers with different models, and a second one with the second model."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(LlamaServer(slow_model, "--alias", model, "--context", "8192", "--http-threads", "64"))
            for model in ("model-one", "model-two", "model-two")
        ]


@pytest.fixture
async def start_proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StartProxy]:
    async with AsyncExitStack() as stack:

        async def start(*backends: LlamaServer | Engine, **settings: str) -> Proxy:
            return await started(stack, tmp_path_factory.mktemp("proxy"), *backends, **settings)

        yield start


async def ask(page: Page, proxy: Proxy) -> None:
    """Ask a question, and see that the answer grows while it is generated."""
    await eventually(lambda: page.has("textarea"), PATIENCE_SECONDS)
    await page.enter("textarea", "kin sol mer")
    await see_growth(page, proxy)


async def see_growth(page: Page, proxy: Proxy) -> None:
    lengths: set[int] = set()

    async def grows() -> bool:
        length = await page.value(f'document.querySelector("{ANSWER}")?.innerText.length ?? 0')
        if length and await proxy.in_flight():
            lengths.add(length)
        return len(lengths) > 2

    await eventually(grows, PATIENCE_SECONDS)


async def stop(page: Page, proxy: Proxy) -> None:
    """Stop the answer."""
    await page.click("Stop generation")
    await eventually(lambda: is_idle(proxy), PATIENCE_SECONDS)


async def is_idle(proxy: Proxy) -> bool:
    return await proxy.in_flight() == 0


async def has_installed(page: Page) -> bool:
    """Whether the service worker has downloaded all files of the web UI."""
    return bool(await page.value(HAS_INSTALLED))


async def answered(proxy: Proxy) -> dict[str, set[str]]:
    """The paths that each backend has answered, after all requests have ended."""
    await asyncio.to_thread(proxy.stop)
    paths: dict[str, set[str]] = {}
    for line in proxy.access_lines:
        if line.backend != "-":
            paths.setdefault(line.backend, set()).add(line.path)
    return paths


async def test_web_ui_sees_only_the_default_model(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    proxy = await start_proxy(*servers, DEFAULT_MODEL="model-two")
    async with opened(f"{proxy.url}/index.html", tmp_path) as page:
        await ask(page, proxy)
        await stop(page, proxy)

    paths = await answered(proxy)
    assert set(paths) <= {servers[1].url, servers[2].url}
    assert {"/index.html", "/props", "/v1/chat/completions"} <= set().union(*paths.values())


async def test_web_ui_sees_only_the_first_llama_cpp_model_of_a_mixed_fleet(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    async with Engine(owner="vllm", models=[{"id": "model-zero"}]) as vllm:
        proxy = await start_proxy(vllm, *servers)
        async with opened(f"{proxy.url}/index.html", tmp_path) as page:
            await ask(page, proxy)
            await stop(page, proxy)

        assert set(await answered(proxy)) == {servers[0].url}
        assert not vllm.served


async def test_web_ui_loads_without_a_key_and_chats_with_one(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    proxy = await start_proxy(*servers, API_KEYS=f"web:{KEY}")
    async with opened(f"{proxy.url}/index.html", tmp_path) as page:
        await eventually(lambda: has_installed(page), PATIENCE_SECONDS)
        assert "Access denied" in await page.value("document.body.innerText")
        assert (await proxy.post()).status == 401
        await page.click("Enter API Key")
        await eventually(lambda: page.has("#api-key-input"))
        await page.enter("#api-key-input", KEY)
        await ask(page, proxy)
        await stop(page, proxy)

    assert set(await answered(proxy)) == {servers[0].url}
    refused = {line.path for line in proxy.access_lines if line.status == 401}
    assert refused == {"/props", "/tools", "/v1/chat/completions"}


async def test_web_ui_that_is_opened_again_continues_the_answer(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    """Only one of the two servers with its model has the answer."""
    proxy = await start_proxy(*servers, DEFAULT_MODEL="model-two")
    async with opened(f"{proxy.url}/index.html", tmp_path) as page:
        await ask(page, proxy)
        address = await page.value("location.href")  # it ends with the number of the conversation
        await page.open(address.replace("index.html", "index.html?again"))
        await see_growth(page, proxy)
        await stop(page, proxy)

    await asyncio.to_thread(proxy.stop)
    assert [line.path for line in proxy.access_lines].count("/v1/chat/completions") == 1


async def test_service_worker_of_the_web_ui_does_not_replace_the_page_of_the_proxy(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    proxy = await start_proxy(*servers)
    async with opened(f"{proxy.url}/index.html", tmp_path) as page:
        await eventually(lambda: has_installed(page), PATIENCE_SECONDS)
        await page.open(f"{proxy.url}/")

        await eventually(lambda: page.has(".fleet button.name"))
        assert await page.value("navigator.serviceWorker.controller !== null")
