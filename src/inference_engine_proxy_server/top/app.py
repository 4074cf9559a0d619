"""The live page in a terminal. Needs the extra ``top`` (Textual)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Static, TabbedContent, TabPane

from inference_engine_proxy_server.top.client import ProxyClient, Refused, Unreachable
from inference_engine_proxy_server.top.view import (
    BACKEND_COLUMNS,
    EVENT_COLUMNS,
    REQUEST_COLUMNS,
    SORTS,
    Row,
    backend_rows,
    event_rows,
    header_lines,
    request_rows,
    sparkline,
)

__all__ = ["TopApp"]

_COLORS = {"error": "bold red", "warning": "yellow"}
_COLUMNS = {"backends": BACKEND_COLUMNS, "requests": REQUEST_COLUMNS, "events": EVENT_COLUMNS}


class _Question(ModalScreen[bool]):
    """Asks whether a command should be sent."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
    ]
    CSS = "_Question { align: center middle; } Label { border: round $primary; padding: 1 2; }"

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Label(Text(f"{self._text} (y/n)"))

    def action_answer(self, is_yes: bool) -> None:
        self.dismiss(is_yes)


class TopApp(App[int]):
    """Shows a proxy until the user quits.

    Args:
        client: asks the proxy.
        retry_seconds: between two tries to reach it.
    """

    TITLE = "inference-proxy top"
    CSS = """
    #header { height: auto; padding: 0 1; }
    #problem { height: auto; padding: 0 1; color: $error; display: none; }
    #filter { display: none; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter"),
        Binding("d", "drain(True)", "Drain"),
        Binding("u", "drain(False)", "Undrain"),
        Binding("c", "cancel", "Cancel request"),
        Binding("1", "show('backends')", "Backends", show=False),
        Binding("2", "show('requests')", "Requests", show=False),
        Binding("3", "show('events')", "Events", show=False),
    ]

    def __init__(self, client: ProxyClient, retry_seconds: float = 1.0) -> None:
        super().__init__()
        self._client = client
        self._retry_seconds = retry_seconds
        self._snapshot: dict[str, Any] | None = None
        self._sort = next(iter(SORTS))
        # Not looked up when they are needed: a question may be on top of them, or the page may be ending.
        self._header = Static("Waiting for the first snapshot ...", id="header")
        self._problem = Static("", id="problem")
        self._tabs = TabbedContent(initial="backends")
        self._tables = {
            name: DataTable[Text](id=f"{name}-table", cursor_type="row", zebra_stripes=True) for name in _COLUMNS
        }
        self._filter = Input(placeholder="Show only rows with this text; Escape shows all", id="filter")

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._problem
        with self._tabs:
            for name, table in self._tables.items():
                with TabPane(name.capitalize(), id=name):
                    yield table
        yield self._filter
        yield Footer()

    def on_mount(self) -> None:
        for name, columns in _COLUMNS.items():
            self._tables[name].add_columns(*columns)
        self._tables["backends"].focus()
        self.run_worker(self._follow(), exclusive=True)

    async def _follow(self) -> None:
        """Show each snapshot of the feed; after a failure, the last one stays, with a line that says why."""
        while True:
            try:
                feed = self._client.follow()
                while (snapshot := await asyncio.to_thread(next, feed, None)) is not None:
                    self._snapshot = snapshot
                    self._show_problem("")
                    self._show()
                self._show_problem("The proxy has ended its feed; trying again")
            except (Unreachable, Refused) as error:
                self._show_problem(f"{error}; trying again")
            await asyncio.sleep(self._retry_seconds)

    def _show_problem(self, text: str) -> None:
        self._problem.update(Text(text))
        self._problem.display = bool(text)

    def _show(self) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            return
        text = self._filter.value
        history = snapshot.get("history", {}).get("requests_per_second", [])
        bars = sparkline(history, max(10, self.size.width - 24))
        lines = [*header_lines(snapshot), f"requests/s, 1 h  {bars}" if bars.strip() else ""]
        self._header.update(Text("\n".join(filter(None, lines))))
        self._fill("backends", backend_rows(snapshot, self._sort, text))
        self._fill("requests", request_rows(snapshot, text))
        self._fill("events", event_rows(snapshot, text))

    def _fill(self, name: str, rows: Sequence[Row]) -> None:
        """Replace the rows of a table, and keep the cursor on what it was on."""
        table = self._tables[name]
        chosen, position = self._chosen(name), table.cursor_row
        table.clear()
        for number, row in enumerate(rows):
            color = _COLORS.get(row.level, "")
            # Texts, because a table would read square brackets in a string as markup. The number keeps keys unique.
            table.add_row(*(Text(cell, color) for cell in row.cells), key=f"{number} {row.key}")
        keys = [row.key for row in rows]
        table.move_cursor(row=keys.index(chosen) if chosen in keys else min(position, max(0, len(rows) - 1)))

    def _chosen(self, name: str) -> str | None:
        table = self._tables[name]
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return None if key is None else key.partition(" ")[2]

    # --- keys

    def action_show(self, name: str) -> None:
        """Show one of the tables."""
        self._tabs.active = name
        self._tables[name].focus()

    def action_sort(self) -> None:
        """Use the next order of backends."""
        orders = list(SORTS)
        self._sort = orders[(orders.index(self._sort) + 1) % len(orders)]
        self.notify(f"Backends by {self._sort}.")
        self._show()

    def action_filter(self) -> None:
        """Let the user type a text that rows must contain."""
        self._filter.display = True
        self._filter.focus()

    def on_input_changed(self) -> None:
        """Show the rows with the text so far."""
        self._show()

    def on_input_submitted(self) -> None:
        """Go back to the table."""
        self._tables[self._tabs.active].focus()

    def key_escape(self) -> None:
        """Show all rows again."""
        self._filter.value = ""
        self._filter.display = False
        self._tables[self._tabs.active].focus()

    def action_drain(self, is_draining: bool) -> None:
        """Drain the chosen backend, or use it again."""
        name = self._chosen("backends")
        if name is not None:
            verb = "Drain" if is_draining else "Undrain"
            self._ask(f"{verb} backend {name}?", lambda: self._client.drain(name, is_draining=is_draining))

    def action_cancel(self) -> None:
        """Cancel the chosen request."""
        request_id = self._chosen("requests")
        if request_id is not None:
            self._ask(f"Cancel request {request_id}?", lambda: self._client.cancel(request_id))

    def _ask(self, text: str, command: Callable[[], None]) -> None:
        """Send ``command`` if the user wants it."""

        async def send() -> None:
            try:
                await asyncio.to_thread(command)
            except (Unreachable, Refused) as error:
                self.notify(str(error), severity="error", markup=False)
            else:
                self.notify("Done.")

        def decide(is_wanted: bool | None) -> None:
            if is_wanted:
                self.run_worker(send())

        self.push_screen(_Question(text), decide)
