"""Engines in the local network are found by multicast DNS, here on the loopback interface and in separate processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from end_to_end.test_mdns import LOOPBACK, own_service_type, published, service, url_of
from inference_engine_proxy_server.announce import mdns
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.discovery.mdns_source import MdnsSource
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import send
from support.program import Command, program, run_command
from support.running_proxy import RunningProxy
from support.waiting import eventually


async def urls(proxy: RunningProxy) -> set[str]:
    return set(await proxy.details())


async def test_engines_of_the_network_join_with_what_they_say_of_themselves_and_leave(tmp_path: Path) -> None:
    service_type = own_service_type()
    async with Engine(answers_with(http_reply())) as engine:
        info = service(service_type, engine.port, instance="Ann's PC", tier="2", name="gpu-1")
        settings = {"BACKENDS": url_of(service_type), "ADMIN_KEY": "key-of-the-operators", "WORKERS": "2"}
        async with program(tmp_path, **settings) as proxy:
            async with published(info):
                await eventually(lambda: _has(proxy, engine.url))
                await proxy.becomes(engine, "up")
                assert (await proxy.post()).status == 200
                reply = await send(proxy.url, "/admin/backends", headers={"X-Admin-Key": "key-of-the-operators"})
                [row] = reply.json["backends"]
                assert (row["name"], row["tier"], row["source"]) == ("gpu-1", 2, url_of(service_type))
            await eventually(lambda: _is_empty(proxy))


async def _has(proxy: RunningProxy, url: str) -> bool:
    return url in await urls(proxy)


async def _is_empty(proxy: RunningProxy) -> bool:
    return not any([await urls(proxy) for _ in range(6)])


async def test_the_command_announce_publishes_an_engine(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine:
        name = f"gpu-{engine.port}"
        async with program(tmp_path / "proxy", BACKENDS=url_of(mdns.SERVICE_TYPE)) as proxy:
            with Command(
                tmp_path / "c", "announce", "--mdns", LOOPBACK, "--backend", f"{engine.url}", "--name", name
            ) as command:
                await eventually(lambda: _has(proxy, engine.url))
                await proxy.becomes(engine, "up")
                command.signal(signal.SIGTERM)
                assert await command.ended() == 0

            async def has_left() -> bool:
                return engine.url not in await urls(proxy)

            await eventually(has_left)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['zeroconf'] = None\n")
    path = f"{tmp_path}:{':'.join(one for one in sys.path if one)}"
    monkeypatch.setenv("COVERAGE_PROCESS_START", "")  # a fresh interpreter, which reads sitecustomize.py
    monkeypatch.setenv("PYTHONPATH", path)
    for arguments, settings in (
        (("serve",), {"BACKENDS": "mdns+http://_inference._tcp"}),
        (("announce", "--mdns", "--backend", "http://10.0.0.1"), {}),
    ):
        ended = run_command(tmp_path, *arguments, PORT="0", **settings)
        assert ended.returncode == 2
        assert "pip install 'inference-engine-proxy-server[mdns]'" in ended.stderr


class Reports:
    """What a source reports."""

    def __init__(self) -> None:
        self.urls: list[list[str]] = []

    def found(self, backends: Sequence[BackendConfig]) -> None:
        self.urls.append([backend.url for backend in backends])

    def failed(self, problem: str, *, backends_leave: bool = False) -> None:
        raise AssertionError(problem)


async def test_an_engine_that_crashes_without_a_goodbye_stays_while_its_port_is_open(tmp_path: Path) -> None:
    interfaces, reports = [frozenset({"127.0.0.1"})], Reports()
    source = MdnsSource(
        BackendConfig(url_of(mdns.SERVICE_TYPE), "engines"),
        lambda: interfaces[0],
        look_seconds=0.1,
        refusing_seconds=0.5,
    )
    running = asyncio.get_running_loop().create_task(source.run(reports))
    try:
        async with Engine(answers_with(http_reply())) as engine:
            arguments = ("announce", "--mdns", LOOPBACK, "--backend", engine.url, "--name", f"gpu-{engine.port}")
            with Command(tmp_path / "c", *arguments) as command:
                await eventually(lambda: reports.urls and engine.url in reports.urls[-1])
                command.signal(signal.SIGKILL)
                await command.ended()
            interfaces[0] = frozenset({"127.0.0.1", "10.0.0.1"})  # so it looks for services again, and finds none
            reported = len(reports.urls)
            await eventually(lambda: len(reports.urls) > reported)
            await asyncio.sleep(1.5)
            assert engine.url in reports.urls[-1]
            await engine.go()
            await eventually(lambda: engine.url not in reports.urls[-1])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
