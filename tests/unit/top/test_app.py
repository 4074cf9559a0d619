"""The live page over a real proxy, driven by Textual's pilot. One page serves many tests: its start takes a second."""

from __future__ import annotations

from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static, TabbedContent

from inference_engine_proxy_server.top.app import TopApp
from inference_engine_proxy_server.top.client import ProxyClient
from support.dashboards import ADMIN_KEY, live, snapshot_of
from support.engine import hangs
from support.fleet import Fleet
from support.http_client import Call, chat
from support.live_proxy import Proxy
from support.waiting import eventually

SIZE = (160, 40)


def page(proxy: Proxy) -> TopApp:
    return TopApp(ProxyClient(proxy.url, ADMIN_KEY), retry_seconds=0.1)


def cells(app: TopApp, name: str) -> list[list[str]]:
    table = app.query_one(f"#{name}-table", DataTable)
    return [[str(cell) for cell in table.get_row_at(at)] for at in range(table.row_count)]


async def press(app: TopApp, pilot: Pilot[int], key: str, reply: str) -> None:
    """Press ``key``, which asks a question, and then ``reply``."""
    await pilot.press(key)
    await eventually(lambda: isinstance(app.screen, ModalScreen))
    await pilot.press(reply)
    await eventually(lambda: not isinstance(app.screen, ModalScreen))


async def test_page_shows_a_proxy_and_sends_commands(fleet: Fleet) -> None:
    engines = [await fleet.engine(hangs, models=[{"id": "qwen"}]), await fleet.engine(hangs)]
    proxy = await fleet.proxy(*engines, admin_key=ADMIN_KEY, assemble_replies=False)
    app = page(proxy)

    async def is_draining() -> list[bool]:
        return [backend["draining"] for backend in (await snapshot_of(proxy))["backends"]]

    async with (
        Call(proxy.url, "/v1/chat/completions", chat(model="qwen"), headers={"X-Request-Id": "mine"}) as call,
        app.run_test(size=SIZE) as pilot,
    ):
        call.send()
        await live(proxy, lambda request: request["phase"] == "prefill")
        await eventually(lambda: len(cells(app, "backends")) == 2 and len(cells(app, "requests")) == 1)
        assert "OK  2 of 2 backends take requests" in str(app.query_one("#header", Static).render())
        assert cells(app, "requests")[0][:2] == ["mine", "prefill"]
        assert all("is up." in row[3] for row in cells(app, "events"))

        await pilot.press("slash")
        await eventually(lambda: isinstance(app.focused, Input))
        await pilot.press("q", "w")  # q in a text does not quit
        await eventually(lambda: [row[10] for row in cells(app, "backends")] == ["qwen"])
        await pilot.press("enter")
        await eventually(lambda: isinstance(app.focused, DataTable))

        await press(app, pilot, "d", "n")
        assert await is_draining() == [False, False]
        await press(app, pilot, "d", "y")
        await eventually(lambda: cells(app, "backends")[0][1] == "draining")
        assert await is_draining() == [True, False]

        await pilot.press("2")
        await eventually(lambda: app.query_one(TabbedContent).active == "requests")
        await press(app, pilot, "c", "y")
        assert (await call.reply()).status == 503
        await pilot.press("escape")
        await eventually(lambda: len(cells(app, "backends")) == 2)
        await pilot.press("q")
        await eventually(lambda: not app.is_running)
    assert app.return_code == 0


async def test_problem_is_shown_while_the_last_rows_stay(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)
    app = page(proxy)
    async with app.run_test(size=SIZE):
        await eventually(lambda: len(cells(app, "backends")) == 1)
        await proxy.stop()
        problem = app.query_one("#problem", Static)
        await eventually(lambda: problem.display and "cannot be reached" in str(problem.render()))
        assert len(cells(app, "backends")) == 1
