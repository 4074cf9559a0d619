"""`inference-proxy doctor --through` examines a real NGINX."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from nginx.conftest import StartNginx
from nginx.server import Nginx
from support.program import Proxy, run_command


async def found(tmp_path: Path, url: str, proxy: Proxy) -> list[str]:
    """The codes of the findings about the public address."""
    variables = {"BACKENDS": "http://127.0.0.1:9", "HOST": "127.0.0.1", "PORT": proxy.url.rpartition(":")[2]}
    done = await asyncio.to_thread(run_command, tmp_path, "doctor", "--json", "--through", url, **variables)
    codes = [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    return [code for code in codes if code.startswith("public_")]


async def test_nginx_of_this_project_has_no_findings(tmp_path: Path, nginx: Nginx, proxy: Proxy) -> None:
    assert await found(tmp_path, nginx.url, proxy) == []
    assert await found(tmp_path, nginx.https_url, proxy) == ["public_certificate_unknown"]


@pytest.mark.parametrize(
    ("written", "instead", "code"),
    [
        # What NGINX did by default before 1.29.7.
        (r"proxy_http_version 1.1;([^}]*)proxy_buffering off;", r"proxy_http_version 1.0;\1", "public_buffers"),
        ("gzip off;", "gzip on; gzip_types text/event-stream; gzip_proxied any;", "public_compresses"),
        (r"client_max_body_size \d+;", "client_max_body_size 1m;", "public_body_limit"),
        ("large_client_header_buffers 4 32k;", "large_client_header_buffers 4 8k;", "public_header_limit"),
        ("proxy_http_version 1.1;", "proxy_http_version 1.1; keepalive_timeout 0;", "public_closes_connections"),
    ],
)
async def test_a_finding_appears_and_disappears(
    tmp_path: Path, start_nginx: StartNginx, proxy: Proxy, written: str, instead: str, code: str
) -> None:
    nginx = start_nginx(proxy.url)
    assert await found(tmp_path, nginx.url, proxy) == []
    nginx.reconfigure(lambda text: re.sub(written, instead, text))
    assert code in await found(tmp_path, nginx.url, proxy)
