"""A real Prometheus scrapes the proxy in front of real llama.cpp servers, and answers every query that is shipped."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prometheus.server import Prometheus, wait_for
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.monitoring import panels
from support.ports import unused_url
from support.program import Proxy

CHAT = "/v1/chat/completions"
CLIENTS = 8  # more than the servers have slots, so that requests wait
BY_LOAD = {
    "InferenceProxyErrorRatioHigh",
    "InferenceProxyEventLoopSlow",
    "InferenceProxyQueueGrows",
    "InferenceProxyTimeToFirstTokenHigh",
}  # may be raised on a slow machine


class Site(NamedTuple):
    """A proxy with traffic, and Prometheus, which has scraped it.

    Attributes:
        down: base URL of a backend that does not exist.
    """

    proxy: Proxy
    prometheus: Prometheus
    down: str


class Traffic:
    """Clients that send all kinds of requests until :meth:`stop`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(number) for number in range(CLIENTS)))

    async def _ask(self, number: int) -> None:
        kinds = [
            chat(30),
            chat(60, stream=True),
            {"model": "large", "prompt": "kin", "max_tokens": 3},
            {"input": "sol"},
        ]
        paths = [CHAT, CHAT, "/v1/completions", "/v1/embeddings"]
        while not self._ends.is_set():
            number = (number + 1) % len(kinds)
            await send(self._url, paths[number], kinds[number])
            async with Call(self._url, CHAT, chat(200, stream=True)) as leaver:
                leaver.send()
                await leaver.head()


@contextmanager
def declining_engine(server: LlamaServer) -> Iterator[str]:
    """The base URL of an engine that seems to be ``server``, and declines all requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = asyncio.run(send(server.url, self.path))
            self._answer(reply.status, reply.body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(503, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            del arguments

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{engine.server_address[1]}"
        engine.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, slow_model: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    down = unused_url()
    with ExitStack() as stack:
        servers = [stack.enter_context(LlamaServer(slow_model, "--slots", "2")) for _ in range(2)]
        declining = stack.enter_context(declining_engine(servers[0]))
        (folder / "proxy").mkdir()
        fleet_file = folder / "proxy" / "fleet.yaml"
        fleet_file.write_text("models: {large: {fallbacks: [gemma]}}")
        proxy = stack.enter_context(
            Proxy(
                folder / "proxy",
                [*(server.url for server in servers), declining, down],
                WORKERS="2",
                CONFIG_FILE="fleet.yaml",
                METRICS_CACHE_TTL_SECONDS="0.5",
                BACKEND_QUEUE_ALLOWANCE="0",
                MEMORY_LIMIT_BYTES="1000000000",
                USAGE_FILE="usage.db",
            )
        )
        prometheus = stack.enter_context(Prometheus(folder, proxy.url.removeprefix("http://")))
        wait_for(lambda: prometheus.query("inference_proxy_build_info"), "the proxy is scraped")
        traffic = Traffic(proxy.url)
        stack.callback(traffic.stop)
        wait_for(lambda: counted(prometheus, "requests_total") > 50, "there is traffic")
        fleet_file.write_text("models: 5")  # which is invalid
        wait_for(lambda: prometheus.query("rate(inference_proxy_retries_total[1m])"), "declined requests are retried")
        wait_for(lambda: prometheus.query("rate(inference_proxy_stream_aborts_total[1m])"), "clients have left streams")
        yield Site(proxy, prometheus, down)


def counted(prometheus: Prometheus, name: str) -> float:
    return sum(float(one["value"][1]) for one in prometheus.query(f"inference_proxy_{name}"))


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ]


def as_grafana_sends(expression: str) -> str:
    """The query when everything is selected."""
    values = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*", "$model": ".*"}
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("expression", queries())
def test_every_query_of_the_dashboard_has_data(site: Site, expression: str) -> None:
    assert site.prometheus.query(as_grafana_sends(expression))


@pytest.mark.parametrize("expression", queries())
def test_every_query_of_the_dashboard_depends_on_the_selected_instance(site: Site, expression: str) -> None:
    assert "vector(0)" in expression or not site.prometheus.query(
        as_grafana_sends(expression.replace("$instance", "other"))
    )


def test_all_rules_are_evaluated_and_every_recorded_series_has_data(site: Site) -> None:
    rules = site.prometheus.rules()
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert recorded
    wait_for(lambda: all(site.prometheus.query(name) for name in recorded), "all recorded series have data")


def test_a_backend_that_is_down_raises_its_alert_and_no_other(site: Site) -> None:
    wait_for(lambda: "InferenceProxyBackendDown" in site.prometheus.alerts(), "the alert is raised")
    pending = site.prometheus.query('ALERTS{alertname="InferenceProxyBackendDown"}')
    assert site.down in {one["metric"]["backend"] for one in pending}
    assert set(site.prometheus.alerts()) - BY_LOAD <= {"InferenceProxyBackendDown", "InferenceProxyReloadFailed"}


def test_a_rejected_reload_raises_its_alert(site: Site) -> None:
    wait_for(lambda: site.prometheus.alerts().get("InferenceProxyReloadFailed") == "firing", "the alert fires")


def test_the_names_of_all_metrics_follow_the_conventions(site: Site) -> None:
    page = asyncio.run(send(site.proxy.url, "/metrics")).body.decode()
    ended = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
