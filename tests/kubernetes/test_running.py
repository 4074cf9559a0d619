"""The real program runs as the chart starts it: with its variables, files and probes, and as Kubernetes stops it.

There is no cluster here. A dnsmasq has the records of the headless Service, files lie as kubelet lays them, and the
test plays Service and kubelet: it sends requests to the pods in the Service, and deletes a pod as Kubernetes does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from discovery.dnsmasq import Dnsmasq
from kubernetes.chart import SETS, Manifest, container_of, environment_of, of_kind, render
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.ports import free_port
from support.program import Proxy
from support.waiting import eventually

NAME = "engines.test"
PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


def pod(folder: Path, manifests: list[Manifest], **replaced: str) -> Proxy:
    """A container of the Deployment as a process of this machine, listening only on 127.0.0.1."""
    own = {"HOST": "127.0.0.1", "PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
    environment = environment_of(manifests) | own | replaced
    for name, value in environment.items():
        environment[name] = value.replace("/etc/inference-proxy", str(folder / "etc"))
    return Proxy(folder, [], **environment)


def mount(folder: Path, content: dict[str, str], version: int = 1) -> None:
    """Lay out a ConfigMap or Secret as kubelet does: files are links into ``..data``, a link that is replaced."""
    version_folder = folder / f"..{version}"
    version_folder.mkdir(parents=True)
    for name, text in content.items():
        (version_folder / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..data_tmp").symlink_to(version_folder.name)
    (folder / "..data_tmp").replace(folder / "..data")


def backends_at(dnsmasq: Dnsmasq, port: int) -> tuple[str, str]:
    url = f"dns+http://{NAME}:{port}?server={dnsmasq.address}"
    return "--set", f"backends={{{url}}},settings.LOG_FORMAT=text"


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tiny_model, "--slots", "4", "--context", "8192", port=free_port()) as server:
        yield server


@contextmanager
def dns(folder: Path, *addresses: str) -> Iterator[Dnsmasq]:
    with Dnsmasq(folder, {NAME: addresses}) as dnsmasq:
        yield dnsmasq


async def status(url: str, path: str) -> int:
    return (await send(url, path)).status


async def test_probes_ask_paths_that_say_whether_the_pod_is_alive_and_ready(
    tmp_path: Path, engine: LlamaServer
) -> None:
    with dns(tmp_path) as dnsmasq:  # no engine is ready yet
        manifests = render((), *backends_at(dnsmasq, engine.port))
        container = container_of(manifests)
        live, ready = (container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe"))
        with pod(tmp_path / "pod", manifests) as proxy:
            assert await status(proxy.url, container["startupProbe"]["httpGet"]["path"]) == 200
            assert (await status(proxy.url, live), await status(proxy.url, ready)) == (200, 503)
            dnsmasq.set({NAME: ["127.0.0.1"]})
            await eventually(partial(becomes_ready, proxy, ready), 60)
            assert (await send(proxy.url, PATH, chat(4))).status == 200


async def becomes_ready(proxy: Proxy, path: str) -> bool:
    return await status(proxy.url, path) == 200


async def test_the_pod_of_helm_test_passes_only_if_requests_can_be_answered(
    tmp_path: Path, engine: LlamaServer
) -> None:
    with dns(tmp_path) as dnsmasq:
        manifests = render((), *backends_at(dnsmasq, engine.port))
        admin_port = free_port()
        with pod(tmp_path / "pod", manifests, ADMIN_PORT=str(admin_port)) as proxy:
            failed = await helm_test(manifests, proxy.url, admin_port)
            assert failed.returncode != 0
            assert "no backend takes requests" in failed.stderr
            dnsmasq.set({NAME: ["127.0.0.1"]})
            await eventually(partial(becomes_ready, proxy, "/readyz"), 60)
            passed = await helm_test(manifests, proxy.url, admin_port)
            assert passed.returncode == 0, passed.stderr
            assert "backends: 1 status: ok" in passed.stdout


async def helm_test(manifests: list[Manifest], url: str, admin_port: int) -> subprocess.CompletedProcess[str]:
    [test_pod] = of_kind(manifests, "Pod")
    [container] = test_pod["spec"]["containers"]
    variables = {"PROXY_URL": url, "ADMIN_URL": f"http://127.0.0.1:{admin_port}"}
    assert variables.keys() == {variable["name"] for variable in container["env"]}
    assert container["command"] == ["python", "-c"]
    command = [sys.executable, "-c", *container["args"]]
    return await asyncio.to_thread(
        subprocess.run, command, env=os.environ | variables, capture_output=True, text=True, check=False
    )


async def test_changed_config_maps_and_secrets_take_effect_without_a_restart(
    tmp_path: Path, engine: LlamaServer
) -> None:
    keys = {"keys": [{"name": "alice", "secret": "sk-0123456789abcdef"}]}
    values = tmp_path / "values.yaml"
    [model] = (await send(engine.url, "/v1/models")).json["data"]
    fleet = {"backends": [{"url": engine.url}], "models": {model["id"]: {"aliases": ["first"]}}}
    values.write_text(yaml.safe_dump({"backends": [], "fleet": {"content": fleet}, "secrets": {"keysFile": keys}}))
    manifests = render([values])
    [secret] = of_kind(manifests, "Secret")
    [config_map] = of_kind(manifests, "ConfigMap")
    folder = tmp_path / "pod"
    mount(folder / "etc" / "fleet", config_map["data"])
    mount(folder / "etc" / "keys", secret["stringData"])
    with pod(folder, manifests, LOG_FORMAT="text") as proxy:
        await eventually(partial(becomes_ready, proxy, "/readyz"), 60)
        assert await models(proxy, "sk-0123456789abcdef") >= {"first"}
        assert (await send(proxy.url, "/v1/models")).status == 401
        mount(folder / "etc" / "fleet", {"fleet.yaml": config_map["data"]["fleet.yaml"].replace("first", "second")}, 2)
        mount(folder / "etc" / "keys", {"keys.yaml": secret["stringData"]["keys.yaml"].replace("0123", "9999")}, 2)
        await eventually(partial(serves, proxy, "sk-9999456789abcdef", "second"), 60)
        assert (await send(proxy.url, "/v1/models", headers={"x-api-key": "sk-0123456789abcdef"})).status == 401


async def models(proxy: Proxy, key: str) -> set[str]:
    reply = await send(proxy.url, "/v1/models", headers={"x-api-key": key})
    return {model["id"] for model in reply.json["data"]} if reply.status == 200 else set()


async def serves(proxy: Proxy, key: str, model: str) -> bool:
    return model in await models(proxy, key)


class Service:
    """What a Service does: a request goes to one of the pods that are ready, on a new connection."""

    def __init__(self, *pods: Proxy) -> None:
        self.endpoints = list(pods)
        self.statuses: Counter[int] = Counter()
        self.broken: list[bytes] = []
        self._sent = 0

    async def requests(self) -> None:
        """Send requests and streams without a break; connections that are refused raise."""
        while True:
            self._sent += 1
            pod = self.endpoints[self._sent % len(self.endpoints)]
            if self._sent % 2:
                self.statuses[(await send(pod.url, PATH, chat(4))).status] += 1
            else:
                await self._stream(pod)
            await asyncio.sleep(0.05)

    async def _stream(self, pod: Proxy) -> None:
        async with Call(pod.url, PATH, chat(200, stream=True)) as stream:
            stream.send()
            self.statuses[await stream.head()] += 1
            last = b""
            while event := await stream.event():
                last = event
        if last != DONE:
            self.broken.append(last)


@pytest.mark.parametrize("readiness", ["/readyz", "/livez"])
async def test_no_request_is_lost_when_a_pod_is_deleted_under_load(
    tmp_path: Path, engine: LlamaServer, readiness: str
) -> None:
    with dns(tmp_path, "127.0.0.1") as dnsmasq:
        manifests = render((), *backends_at(dnsmasq, engine.port), "--set", f"probes.readiness.path={readiness}")
        spec = of_kind(manifests, "Deployment")[0]["spec"]["template"]["spec"]
        pre_stop = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        with pod(tmp_path / "one", manifests) as one, pod(tmp_path / "two", manifests) as two:
            for proxy in (one, two):
                await eventually(partial(becomes_ready, proxy, readiness), 60)
                await eventually(proxy.available, 60)
            service = Service(one, two)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(service.requests()) for _ in range(4)]
                await eventually(lambda: service.statuses[200] > 20, 60)
                ended = asyncio.get_running_loop().time() + spec["terminationGracePeriodSeconds"]
                await delete(one, service, pre_stop)
                assert await one.ended() == 0
                assert asyncio.get_running_loop().time() < ended
                before = service.statuses[200]
                await eventually(lambda: service.statuses[200] > before + 5, 60)
                for task in tasks:
                    task.cancel()
    assert set(service.statuses) == {200}
    assert service.broken == []


async def delete(proxy: Proxy, service: Service, pre_stop: float) -> None:
    """As Kubernetes: the preStop hook runs while nodes learn, later than this, that the pod has left the Service."""
    await asyncio.sleep(pre_stop * 0.8)
    service.endpoints.remove(proxy)
    await asyncio.sleep(pre_stop * 0.2)
    proxy.signal(signal.SIGTERM)


async def test_without_the_pre_stop_hook_and_the_grace_a_deleted_pod_refuses_requests(
    tmp_path: Path, engine: LlamaServer
) -> None:
    """Shows that the test above can fail."""
    with dns(tmp_path, "127.0.0.1") as dnsmasq:
        options = backends_at(dnsmasq, engine.port)
        manifests = render((), options[0], f"{options[1]},settings.DRAIN_GRACE_SECONDS=0")
        with pod(tmp_path / "one", manifests) as one:
            await eventually(partial(becomes_ready, one, "/readyz"), 60)
            service = Service(one)
            requests = asyncio.get_running_loop().create_task(service.requests())
            await eventually(lambda: service.statuses[200] > 3, 60)
            one.signal(signal.SIGTERM)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(requests, 60)


async def test_the_demand_that_starts_the_first_engine(tmp_path: Path) -> None:
    """Without any engine, the model of the fleet file has samples, and refused requests count for it."""
    manifests = render(SETS["vllm-from-zero"])
    [config_map] = of_kind(manifests, "ConfigMap")
    with dns(tmp_path) as dnsmasq:
        name = f"dns+http://{NAME}:8000?server={dnsmasq.address}"
        fleet = config_map["data"]["fleet.yaml"].replace("dns+http://vllm:8000", name)
        mount(tmp_path / "pod" / "etc" / "fleet", {"fleet.yaml": fleet})
        with pod(tmp_path / "pod", manifests, BACKENDS=name, ADMIN_PORT="", LOG_FORMAT="text") as proxy:
            ready = container_of(manifests)["readinessProbe"]["httpGet"]["path"]
            assert await status(proxy.url, ready) == 200
            reply = await send(proxy.url, PATH, {**chat(4), "model": "qwen3-8b"})
            assert (reply.status, "retry-after" in reply.headers) == (503, True)
            refused = {"model": "qwen3-8b", "code": "503", "route": "chat_completions", "backend": ""}
            assert await proxy.metric("requests_total", **refused) == 1
            page = (await send(proxy.url, "/metrics")).body.decode()
            assert 'inference_proxy_model_demand{model="qwen3-8b",state="waiting"} 0.0' in page


def test_the_query_for_engines_counts_refused_requests_and_then_demand(tmp_path: Path) -> None:
    [scaled] = of_kind(render(SETS["vllm-from-zero"]), "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    labels = 'job="inference-proxy", namespace="llm", model="qwen3-8b"'
    series = {
        f'inference_proxy_model_demand{{{labels}, state="running", pod="a"}}': "0+0x40 12+0x40",
        f'inference_proxy_model_demand{{{labels}, state="waiting", pod="b"}}': "0+0x40 5+0x40",
        # A new series: the first request of all, after 5 minutes.
        f'inference_proxy_requests_total{{{labels}, code="503", pod="a"}}': "_x19 1+0x60",
        f'inference_proxy_requests_total{{{labels}, code="200", pod="a"}}': "0+9x80",
        f'inference_proxy_requests_total{{{labels.replace("qwen3-8b", "other")}, code="503", pod="a"}}': "0+9x80",
    }
    wanted = {"4m": 0, "5m30s": 1, "8m": 0, "15m": 17}
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": query, "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
                    for time, value in wanted.items()
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
