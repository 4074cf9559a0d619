"""Checks the files of TLS at the start, and says which one is unusable; OpenSSL would not name it."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from inference_engine_proxy_server.config.sources import SettingsError

__all__ = ["check_authorities", "check_certificate"]

_NO_CERTIFICATE = "it has no certificate in PEM format"
_NO_KEY = "it has no private key in PEM format, or one with a password"
_OTHER_KEY = "it is not the private key of the certificate in TLS_CERT_FILE"
_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"})


def check_certificate(certificate: str | None, key: str | None) -> None:
    """Raise ``SettingsError`` if the certificate or its key cannot be used."""
    if certificate is None or key is None:
        return
    _check("TLS_CERT_FILE", certificate, lambda: ssl.create_default_context(cafile=certificate), _NO_CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Given a password, OpenSSL does not prompt on the terminal.
    _check("TLS_KEY_FILE", key, lambda: context.load_cert_chain(certificate, key, password=lambda: ""), _NO_KEY)


def check_authorities(file: str | None) -> None:
    """Raise ``SettingsError`` if the certificate authorities of backends cannot be used."""
    if file is not None:
        _check("BACKEND_CA_FILE", file, lambda: ssl.create_default_context(cafile=file), _NO_CERTIFICATE)


def _check(name: str, file: str, load: Callable[[], object], usual_reason: str) -> None:
    try:
        load()
    except ssl.SSLError as error:
        reason = _OTHER_KEY if error.reason in _MISMATCHES else usual_reason
        raise SettingsError([f"{name} is {file!r}: {reason}"]) from error
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise SettingsError([f"{name} is {file!r}: {reason}"]) from error
