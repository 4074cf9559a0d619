"""Asks one server over HTTP, and tells failures apart. Blocks; the doctor runs probes in threads."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from http.client import HTTPMessage
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Failure", "Probe", "ProbeError", "ProbeReply"]

_MOST_BYTES = 4 * 2**20  # of a reply; a list of models is far shorter
# OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 10, 62, 64


class Failure(Enum):
    """Why a server gave no HTTP reply."""

    UNKNOWN_HOST = "unknown_host"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NAME = "certificate_name"
    CERTIFICATE_UNKNOWN = "certificate_unknown"
    NO_TLS = "no_tls"
    NO_HTTP = "no_http"


class ProbeError(Exception):
    """There is no reply.

    Attributes:
        failure: why.
    """

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """A reply.

    Attributes:
        status: its status.
        body: at most 4 MiB of it.
        sent_at: its ``Date``, in seconds since the epoch; ``None`` without one.
        certificate_expires_at: in seconds since the epoch; ``None`` without TLS.
        fields: its header lines.
    """

    status: int
    body: bytes
    sent_at: float | None
    certificate_expires_at: float | None
    fields: bytes = b""

    @property
    def json(self) -> Any:
        """The body as JSON; ``None`` if it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Probe:
    """Asks the server at one base URL.

    Args:
        url: base URL, with a path or without.
        key: sent as ``Authorization: Bearer``; ``None`` for none.
        authorities: PEM file with certificate authorities besides those of the system; ``None`` for none.
        seconds: longest wait for each step.
        verifies: whether the server's certificate must be valid.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        authorities: str | None = None,
        seconds: float = 5,
        *,
        verifies: bool = True,
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.is_tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        self.path = parts.path.rstrip("/")
        self.seconds = seconds
        self._fields = {} if key is None else {"authorization": f"Bearer {key}"}
        self._authorities = authorities
        self._verifies = verifies

    def get(self, path: str, body: bytes | None = None) -> ProbeReply:
        """Ask for ``path`` below the base URL; with a JSON ``body``, by POST.

        Raises:
            ProbeError: there is no HTTP reply.
        """
        fields = {**self._fields, "connection": "close"}
        if body is not None:
            fields["content-type"] = "application/json"
        with self.connection() as connection:
            connection.request("GET" if body is None else "POST", self.path + path, body, fields)
            expires_at = _expiry(connection.sock)
            reply = connection.getresponse()
            received = reply.headers.as_bytes()
            return ProbeReply(reply.status, reply.read(_MOST_BYTES), _date(reply.headers), expires_at, received)

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection for requests of the caller's own, to paths below :attr:`path`.

        Raises:
            ProbeError: what the caller does with it fails.
        """
        connection = self._connection()
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise _explained(error) from error
        finally:
            connection.close()

    def speaks_tls(self) -> bool:
        """Whether the port answers a TLS handshake, with whatever certificate."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection((self.host, self.port), self.seconds) as plain,
                context.wrap_socket(plain, server_hostname=self.host),
            ):
                return True
        except OSError:
            return False

    def without_tls(self, port: int | None = None) -> Probe:
        """The same server over plain HTTP, asked quickly; at another ``port`` if there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return Probe(f"http://{host}:{port or self.port}", seconds=1)

    def _connection(self) -> http.client.HTTPConnection:
        if not self.is_tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=self.seconds)
        context = ssl.create_default_context()
        if self._authorities is not None:
            context.load_verify_locations(self._authorities)
        if not self._verifies:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(self.host, self.port, timeout=self.seconds, context=context)


def _expiry(connected: Any) -> float | None:
    if not isinstance(connected, ssl.SSLSocket):
        return None
    certificate = connected.getpeercert()
    return ssl.cert_time_to_seconds(str(certificate["notAfter"])) if certificate else None


def _date(fields: HTTPMessage) -> float | None:
    try:
        sent_at = parsedate_to_datetime(fields["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return (sent_at if sent_at.tzinfo else sent_at.replace(tzinfo=UTC)).timestamp()


def _explained(error: Exception) -> ProbeError:
    return ProbeError(_failure(error), str(error) or type(error).__name__)


def _failure(error: Exception) -> Failure:
    match error:
        case ssl.SSLCertVerificationError(verify_code=code):
            if code == _EXPIRED:
                return Failure.CERTIFICATE_EXPIRED
            return Failure.CERTIFICATE_NAME if code in (_OTHER_NAME, _OTHER_ADDRESS) else Failure.CERTIFICATE_UNKNOWN
        case ssl.SSLError():
            return Failure.NO_TLS
        case socket.gaierror():
            return Failure.UNKNOWN_HOST
        case ConnectionRefusedError():
            return Failure.REFUSED
        case TimeoutError():
            return Failure.TIMEOUT
        case http.client.HTTPException() | ConnectionResetError() | BrokenPipeError():
            return Failure.NO_HTTP
        case OSError():
            return Failure.UNREACHABLE
    raise error
