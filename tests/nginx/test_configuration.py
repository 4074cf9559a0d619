"""NGINX accepts the configuration and listens where it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nginx.server import Nginx, check, configure
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


async def test_without_certificate_nothing_listens_for_https(tmp_path: Path) -> None:
    with Nginx(tmp_path, NOBODY) as nginx:
        assert (await nginx.send("/metrics")).headers["server"] == "nginx"  # without the version
        with pytest.raises(ConnectionRefusedError):
            async with Call(nginx.https_url, "/"):
                pass
