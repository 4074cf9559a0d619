"""Runs the proxy: its sockets, its certificate, its signals."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

import uvicorn

from inference_engine_proxy_server.config.api_keys import KeyFileError
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.core.fleet_keeper import UnknownEngineError
from inference_engine_proxy_server.host import ACCEPT_BACKLOG, Host, listen, raise_file_limit
from inference_engine_proxy_server.logs import configure_logging
from inference_engine_proxy_server.proxy import Proxy

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(
    settings: Settings,
    on_started: Callable[[str], None] | None = None,
    load: Callable[[], Settings] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM, which do nothing more to this process after that.

    Args:
        settings: with at least one backend.
        load: reads the settings again, so that a changed fleet is taken up; ``None``: it never changes.
        on_started: called with our base URL once requests are answered; ``None``: nobody wants to know.

    Returns:
        The process's exit code: 0 after a stop that was asked for, 1 if an address cannot be
        listened on, or the certificate, the file of keys or an engine that the fleet states cannot be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    # uvicorn raises the signals it caught once more when it is done; being told to stop is no reason to die of it.
    # And SIGHUP, which asks for a reading of the settings, must not end what has only begun to read them.
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if load is not None else ())):
        signal.signal(number, lambda *_: None)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listen("PORT", settings.host, settings.port))
            operators = None
            if settings.admin_port is not None:
                operators = stack.enter_context(listen("ADMIN_PORT", settings.host, settings.admin_port))
            _check_certificate(settings.tls_cert_file, settings.tls_key_file)
            host = make_host(settings, on_started, operators, load)
        except (KeyFileError, UnknownEngineError, OSError) as error:
            logger.error("%s", error)
            return 1
        _warn_of_open_port(settings)
        host.run(sockets=[listener])
    return 0


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Raises ``OSError`` that names the settings, where uvicorn would only say what OpenSSL says."""
    if certificate is not None:
        try:
            # With a password given, OpenSSL does not ask the terminal for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise OSError(f"TLS_CERT_FILE {certificate}, TLS_KEY_FILE {key}: {reason}") from error


def _warn_of_open_port(settings: Settings) -> None:
    is_loopback = settings.host == "localhost" or settings.host.startswith("127.") or settings.host == "::1"
    if not is_loopback and not settings.api_keys and settings.api_keys_file is None:
        logger.warning(
            "everybody who reaches HOST %s can use the engines: set API_KEYS, or let a proxy in front ask for keys",
            settings.host,
        )


def make_host(
    settings: Settings,
    on_started: Callable[[str], None] | None = None,
    operators: socket.socket | None = None,
    load: Callable[[], Settings] | None = None,
) -> uvicorn.Server:
    """The server that hosts everything, ready to ``run`` or ``serve`` on sockets that it is given.

    Args:
        on_started: as for :func:`run`.
        operators: listens on ADMIN_PORT; ``None``: there is none.
        load: as for :func:`run`.
    """
    proxy = Proxy(settings, load)
    config = uvicorn.Config(
        proxy.app,
        http=cast(type[asyncio.Protocol], proxy.accept),
        ws="none",
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_seconds),
        backlog=ACCEPT_BACKLOG,
    )
    return Host(config, proxy, on_started, operators)
