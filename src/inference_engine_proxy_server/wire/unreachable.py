"""Why a backend cannot be connected to: one sentence for operators that says what to do."""

from __future__ import annotations

import errno
import socket
import ssl

__all__ = ["reason_unreachable"]

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_WRONG_HOST = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def reason_unreachable(error: Exception) -> str:
    """The cause of ``error``, which came up while connecting, and what to do."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "its host name is unknown: check the name in its URL, and the name service of this machine"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _reason_not_trusted(error)
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS: check whether its URL should begin with http://"
    if isinstance(error, ConnectionRefusedError):
        return "it cannot be reached, because nothing listens there: check that the engine runs, and its port"
    if isinstance(error, TimeoutError):
        return "it cannot be reached within the deadline: check its address, and firewalls in between"
    if isinstance(error, ConnectionAbortedError):  # asyncio raises it when the time for the handshake is over
        return "it does not answer the TLS handshake: check whether its URL should begin with http://"
    if isinstance(error, ConnectionError):
        return "it closed the connection at once: check that the engine runs, and its port"
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return "it cannot be reached, because there is no route to its address: check the network"
    return f"it cannot be reached: {(isinstance(error, OSError) and error.strerror) or error}"


def _reason_not_trusted(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _WRONG_HOST:
        return "its certificate is for another host: use a name from the certificate in its URL"
    if error.verify_code == _EXPIRED:
        return "its certificate has expired: renew it"
    return f"its certificate is not trusted ({error.verify_message}): set BACKEND_CA_FILE to the CA that signed it"
