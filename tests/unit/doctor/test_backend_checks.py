"""Each finding about one backend appears and disappears; with real sockets and certificates."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.backend_checks import Examined, examine_backend
from support.certificate import Certificate, make_certificate, make_expired_certificate
from support.no_http import impatient, no_way, rude, silent

LLAMACPP = {"/v1/models": (200, {"data": [{"id": "m", "owned_by": "llamacpp"}]}), "/metrics": (200, {}),
            "/props": (200, {"total_slots": 4}), "/health": (200, {})}  # fmt: skip
VLLM = {"/health": (200, {}), "/v1/models": (200, {"data": [{"id": "m", "owned_by": "vllm"}]}), "/metrics": (200, {})}
Pages = dict[str, tuple[int, Any]]


@asynccontextmanager
async def server(
    pages: Pages, *, certificate: Certificate | None = None, date: float | None = None, key: str | None = None
) -> AsyncIterator[int]:
    """An HTTP server with these pages, by path; the port that it listens on."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, page = pages.get(head.split()[1], (404, {}))
            if key is not None and f"bearer {key}" not in head.lower():
                status, page = 401, {}
            body = json.dumps(page).encode()
            fields = "" if date is None else f"date: {formatdate(date, usegmt=True)}\r\n"
            writer.write(f"HTTP/1.1 {status} OK\r\ncontent-length: {len(body)}\r\n{fields}\r\n".encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.key)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as listener:
        yield listener.sockets[0].getsockname()[1]


async def examined(url: str, *, key: str | None = None, **settings: Any) -> Examined:
    config = BackendConfig(url, "b", api_key=None if key is None else SecretStr(key))
    return await asyncio.to_thread(examine_backend, config, Settings(**settings), discover_engines())


async def codes(url: str, **options: Any) -> list[str]:
    return [finding.code for finding in (await examined(url, **options)).findings]


@pytest.mark.parametrize("pages", [LLAMACPP, VLLM])
async def test_a_good_backend_has_no_findings_and_its_models_are_known(pages: Pages) -> None:
    async with server(pages, date=time.time()) as port:
        found = await examined(f"http://127.0.0.1:{port}")
    assert found.findings == []
    assert [entry["id"] for entry in found.models] == [one.model for one in found.replicas] == ["m"]


@pytest.mark.parametrize(
    ("pages", "changed", "code"),
    [
        (LLAMACPP, {"/metrics": (501, {})}, "metrics_off"),
        (VLLM, {"/metrics": (404, {})}, "metrics_off"),
        (LLAMACPP, {"/props": (200, {"total_slots": 1})}, "single_slot"),
        (LLAMACPP, {"/v1/models": (503, {})}, "backend_loading"),
        (LLAMACPP, {"/v1/models": (200, ["a web page"])}, "backend_is_no_engine"),
        (LLAMACPP, {"/v1/models": (404, {})}, "backend_is_no_engine"),
    ],
)
async def test_an_answer_that_shows_a_problem(pages: Pages, changed: Pages, code: str) -> None:
    async with server({**pages, **changed}) as port:
        assert await codes(f"http://127.0.0.1:{port}") == [code]


async def test_idle_connections_to_llama_cpp_need_http_threads() -> None:
    async with server(LLAMACPP) as port, server(VLLM) as vllm_port:
        assert await codes(f"http://127.0.0.1:{port}", llamacpp_keep_alive=True) == ["http_threads"]
        assert await codes(f"http://127.0.0.1:{vllm_port}", llamacpp_keep_alive=True) == []


async def test_a_url_that_ends_with_v1() -> None:
    async with server(LLAMACPP) as port:
        assert await codes(f"http://127.0.0.1:{port}/v1") == ["backend_url_ends_with_v1"]


async def test_a_key_that_is_missing_or_wrong() -> None:
    async with server(LLAMACPP, key="right") as port:
        url = f"http://127.0.0.1:{port}"
        assert await codes(url) == await codes(url, key="wrong") == ["backend_rejects_key"]
        assert await codes(url, key="right") == []


async def test_a_clock_that_differs() -> None:
    async with server(LLAMACPP, date=time.time() - 60) as port:
        assert await codes(f"http://127.0.0.1:{port}") == ["clock_differs"]


async def test_a_name_that_cannot_be_resolved() -> None:
    assert await codes("http://no-such-host.invalid") == ["backend_unknown_host"]


async def test_a_network_without_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(LLAMACPP) as port:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "create_connection", no_way)
            assert await codes(f"http://127.0.0.1:{port}") == ["backend_unreachable"]
        assert "backend_unreachable" not in await codes(f"http://127.0.0.1:{port}")


async def test_a_port_where_nothing_listens(free_port: int) -> None:
    assert await codes(f"http://127.0.0.1:{free_port}") == ["backend_refuses"]


async def test_the_usual_port_of_an_engine_is_suggested(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(LLAMACPP) as port:
        ports = "inference_engine_proxy_server.doctor.backend_checks._USUAL_PORTS"
        monkeypatch.setattr(ports, {port: "llama.cpp"})  # the usual one may be in use on this machine
        [finding] = (await examined(f"http://127.0.0.1:{free_port}")).findings
    assert f"127.0.0.1:{port} (llama.cpp) answers" in finding.remedy


@pytest.mark.parametrize(("answer", "code"), [(silent, "backend_timeout"), (rude, "backend_no_http")])
async def test_a_server_that_is_no_http_server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "create_connection", impatient(socket.create_connection))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        assert await codes(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") == [code]


async def test_http_and_https_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", impatient(socket.create_connection))
    async with server(LLAMACPP) as port:
        assert await codes(f"https://127.0.0.1:{port}") == ["backend_no_tls"]
    async with server(LLAMACPP, certificate=make_certificate(tmp_path, "tls", days=30)) as port:
        assert await codes(f"http://127.0.0.1:{port}") == ["backend_needs_tls"]


@pytest.mark.parametrize(
    ("options", "is_trusted", "expected"),
    [
        ({"days": 30}, True, []),
        ({"days": 30}, False, ["backend_certificate_unknown"]),
        ({"days": 30, "subject": "DNS:other.example"}, True, ["backend_certificate_name"]),
        ({"days": 13}, True, ["certificate_expires_soon"]),
    ],
)
async def test_certificates(tmp_path: Path, options: dict[str, Any], is_trusted: bool, expected: list[str]) -> None:
    certificate = make_certificate(tmp_path, "tls", **options)
    settings = {"backend_ca_file": str(certificate.chain)} if is_trusted else {}
    async with server(LLAMACPP, certificate=certificate) as port:
        assert await codes(f"https://127.0.0.1:{port}", **settings) == expected


async def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    certificate = make_expired_certificate(tmp_path)
    async with server(LLAMACPP, certificate=certificate) as port:
        found = await codes(f"https://127.0.0.1:{port}", backend_ca_file=str(certificate.chain))
    assert found == ["backend_certificate_expired"]
