"""HTTPS on the client port. Needs the program openssl to create a certificate."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosedError

from end_to_end.recording import RecordingEngine
from support.certificate import Certificate, make_certificate
from support.program import Proxy, run_command
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine, websocket


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "proxy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


async def test_clients_connect_over_https_and_engines_get_the_protocol(certificate: Certificate, folder: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate.chain))
    async with RecordingEngine() as engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url], **certificate.settings) as proxy:
            assert proxy.url.startswith("https://127.0.0.1:")
            async with httpx2.AsyncClient(base_url=proxy.url, verify=trusting, trust_env=False) as client:
                assert (await client.get("/livez")).json() == {"status": "ok"}
                for _ in range(2):
                    assert (await client.post("/v1/completions", content=b"x" * 200_000)).json()["data"]
                missing = await client.get("/admin/keys")
                assert (missing.status_code, missing.headers["connection"]) == (404, "close")

        for request in engine.forwarded:
            assert re.search(rb"\r\nx-forwarded-proto: https\r\n", request)


async def test_websockets_work_over_tls_on_both_sides(certificate: Certificate, folder: Path) -> None:
    of_engine = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    of_engine.load_cert_chain(certificate.chain, certificate.key)
    trusting = ssl.create_default_context(cafile=str(certificate.chain))
    settings = certificate.settings | {"BACKEND_CA_FILE": str(certificate.chain)}
    async with WebSocketEngine(tls=of_engine, compression=None) as engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url], **settings) as proxy:
            async with websocket(proxy, ssl=trusting, compression=None) as client:
                message = b"m" * 3_000_000
                await client.send(message)
                assert await client.recv() == message
                await client.close(4001, "by the client")
            await eventually(lambda: engine.closes == [(4001, "by the client")])

            async with websocket(proxy, ssl=trusting) as client:
                await engine.sockets[1].close(4002, "by the engine")
                with pytest.raises(ConnectionClosedError, match="by the engine"):
                    await client.recv()

            client = await websocket(proxy, ssl=trusting)
            client.transport.abort()
            await eventually(lambda: [code for code, _ in engine.closes] == [4001, 4002, 1006])
            await eventually(lambda: len(proxy.access_lines) == 3)


async def test_plain_http_is_refused_when_tls_is_on(certificate: Certificate, folder: Path) -> None:
    async with RecordingEngine() as engine:
        with await asyncio.to_thread(Proxy, folder, [engine.url], **certificate.settings) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(30):
                assert b"HTTP/1" not in await reader.read()
            writer.close()

        assert engine.forwarded == []


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        pytest.param({"TLS_CERT_FILE": "missing.pem"}, "TLS_CERT_FILE is 'missing.pem': No such", id="no certificate"),
        pytest.param({"TLS_KEY_FILE": "missing.key"}, "TLS_KEY_FILE is 'missing.key': No such", id="no key"),
        pytest.param({"TLS_CERT_FILE": "text.pem"}, "TLS_CERT_FILE is 'text.pem': it has no cert", id="no PEM"),
        pytest.param({"TLS_CERT_FILE": "other.key"}, "TLS_CERT_FILE is 'other.key': it has no cert", id="swapped"),
        pytest.param(
            {"TLS_KEY_FILE": "other.key"},
            "TLS_KEY_FILE is 'other.key': it is not the private key",
            id="the key of another certificate",
        ),
        pytest.param(
            {"TLS_KEY_FILE": "closed.key"},
            "TLS_KEY_FILE is 'closed.key': it has no private key in PEM format, or one with a password",
            id="a key with a password",
        ),
    ],
)
def test_unusable_certificate_files_are_one_line_and_exit_code_2(
    certificate: Certificate, folder: Path, wrong: dict[str, str], expected: str
) -> None:
    (folder / "text.pem").write_text("planted-secret\n")
    if "other.key" in wrong.values():
        make_certificate(folder, "other")
    if "closed.key" in wrong.values():
        make_certificate(folder, "closed", "-passout", "pass:planted-secret")
    settings = {"PORT": "0", "BACKENDS": "http://127.0.0.1:1", **certificate.settings, **wrong}

    done = run_command(folder, "serve", **settings)  # without a terminal that could ask for a password

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert "planted" not in done.stderr
