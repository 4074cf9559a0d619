"""NGINX accepts the configuration and listens where it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference_engine_proxy_server.dispatch import retry
from inference_engine_proxy_server.dispatch.retry import is_repeatable
from nginx.server import Nginx, check, configure, environment_after
from support.http_client import Call

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("with_certificate", [True, False])
def test_nginx_accepts_it(tmp_path: Path, certificates: Path, with_certificate: bool) -> None:
    configure(tmp_path, NOBODY, certificates=certificates if with_certificate else None)

    assert "[warn]" not in check(tmp_path)
    assert (tmp_path / "conf.d" / "https.conf").exists() == with_certificate


def test_nginx_accepts_every_value_that_the_proxy_accepts(tmp_path: Path) -> None:
    configure(tmp_path, NOBODY, BACKEND_TIMEOUT_SECONDS="0.5", MAX_REQUEST_BODY_BYTES="1099511627776")

    check(tmp_path)


def test_configuration_uses_nothing_from_the_image_or_from_compose(tmp_path: Path, certificates: Path) -> None:
    configure(tmp_path, NOBODY, certificates=certificates)

    text = "".join(file.read_text() for file in (tmp_path / "conf.d").iterdir())
    assert re.findall(r"/etc/nginx|/dev/std\w+|proxy:8888|\$\{|\$[A-Z]", text) == []


def test_it_repeats_the_requests_that_the_proxy_itself_repeats(tmp_path: Path) -> None:
    configure(tmp_path, NOBODY)

    locations = (tmp_path / "conf.d" / "proxy.locations").read_text()
    [pattern] = re.findall(r'location ~ "(.*?)" \{\n    proxy_pass', locations)
    listed = sorted(retry._REPEATABLE_PATHS)  # noqa: SLF001 - every path of the list, and others
    prefixes = {"", *(path.rpartition("/")[0] for path in listed)}
    ends = {path.rpartition("/")[2] for path in listed} | {"responses", "chat", "v1", "models", "x"}
    paths = {f"{prefix}/{end}{more}" for prefix in prefixes for end in ends for more in ("", "/", "/x", "x")}
    assert paths > set(listed)
    assert [path for path in paths if bool(re.search(pattern, path)) != is_repeatable("POST", path)] == []


@pytest.mark.parametrize(
    ("proxies", "servers"),
    [
        ("", ["proxy:8888 resolve"]),
        ("10.0.0.11:8888, 10.0.0.12:8888", ["10.0.0.11:8888", "10.0.0.12:8888"]),
        ("[fd00::1]:8888 b.example:80", ["[fd00::1]:8888", "b.example:80 resolve"]),
    ],
)
def test_each_address_in_proxies_is_a_replica_and_names_are_looked_up_again(proxies: str, servers: list[str]) -> None:
    written = environment_after("16-proxies.envsh", {"PROXIES": proxies})["PROXY_SERVERS"]

    assert [line.strip() for line in written.splitlines() if line.strip()] == [
        *(f"server {server} max_fails=1 fail_timeout=3s;" for server in servers),
        *(f"server {server} max_fails=0 backup;" for server in servers),
    ]


async def test_without_certificate_nothing_listens_for_https(tmp_path: Path) -> None:
    with Nginx(tmp_path, NOBODY) as nginx:
        assert (await nginx.send("/metrics")).headers["server"] == "nginx"  # without the version
        with pytest.raises(ConnectionRefusedError):
            async with Call(nginx.https_url, "/"):
                pass
