"""Admits or rejects a request by its header section: is there a key, and is it valid for this path?"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_engine_proxy_server.access.allowances import Allowance, Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.destinations import Destination, is_about_models, is_usage, is_web_ui
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Access", "Gate"]


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of a request, by its key.

    Attributes:
        key: the key.
        allowance: its remaining use.
        keys: the key ring's keys when this one was found, to notice a reload.
    """

    key: ApiKey
    allowance: Allowance
    keys: Mapping[bytes, ApiKey] = field(default_factory=dict, repr=False)

    def permits(self, model: str | None) -> bool:
        """Whether the request may use ``model``; a key that is limited to some models requires a name."""
        return self.key.models is None or model in self.key.models


class Gate:
    """Checks the key in each request's header section, before the body is read.

    Args:
        ring: the keys of clients; ``None`` when no key is needed.
        allowances: the allowances of keys.
        admin_key: for ``/admin/``; ``None`` disables it.
        metrics_key: for ``/metrics``; ``None`` when it needs no key.
        operators_elsewhere: whether ``/admin/`` and ``/metrics`` are on a separate port.
    """

    def __init__(
        self,
        ring: KeyRing | None,
        allowances: Allowances,
        *,
        admin_key: str | None,
        metrics_key: str | None,
        operators_elsewhere: bool,
    ) -> None:
        self._ring = ring
        self._allowances = allowances
        self._admin_digest = None if admin_key is None else digest_of(admin_key.encode())
        self._metrics_digest = None if metrics_key is None else digest_of(metrics_key.encode())
        self._operators_elsewhere = operators_elsewhere

    def admit(self, head: RequestHead) -> Access | None:
        """The permissions of the request; ``None`` when it has no key and needs none.

        Raises:
            ClientError: 401, the key is missing or not valid for this path; 404, the path is not served here.
        """
        if head.destination is Destination.OPERATORS:
            if self._operators_elsewhere:
                raise ClientError("This is served on ADMIN_PORT.", status=404, code="not_here")
            self._require_operator(head)
        elif self._ring is not None:
            access: Access | None = head.access
            if access is not None and self._ring.still_has(access.key, access.keys):
                return access  # found for an equal header section
            for given in _secrets(head):
                key = self._ring.find(digest_of(given))
                if key is not None:
                    return Access(key, self._allowances.of(key), self._ring.keys)
            is_public = _is_open(head) or head.is_preflight or is_web_ui(head.method, head.path)
            if not is_public or head.destination is Destination.WEBSOCKET:
                raise _refused(head)
        return None

    def admit_operator(self, head: RequestHead) -> None:
        """Like :meth:`admit`, but for ADMIN_PORT, which reaches no engine."""
        if head.destination is Destination.OPERATORS:
            self._require_operator(head)
        elif not _is_open(head):
            raise ClientError("Only the proxy's own endpoints are served here.", status=404, code="not_here")

    def _require_operator(self, head: RequestHead) -> None:
        name, digest = "METRICS_KEY", self._metrics_digest
        if head.path.removesuffix("/") != "/metrics":
            name, digest = "ADMIN_KEY", self._admin_digest
            if digest is None:
                raise ClientError("/admin is off: ADMIN_KEY is not set.", status=404, code="admin_off")
        if digest is not None and not any(hmac.compare_digest(digest_of(given), digest) for given in _secrets(head)):
            raise _refused(head, name)


def _is_open(head: RequestHead) -> bool:
    """Whether the request needs no client key: the proxy's own endpoints, except those about models and usage."""
    return head.destination is Destination.OWN and not is_about_models(head.path) and not is_usage(head.path)


def _secrets(head: RequestHead) -> list[bytes]:
    """The secrets in the request: after ``Bearer`` (OpenAI), in ``x-api-key`` (Anthropic), in ``api-key`` (Azure).

    The subprotocol by which browsers send a key for a WebSocket has become ``Bearer`` by now.
    """
    found = []
    authorization = head.authorization
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        found.append(authorization[7:].strip())
    found.extend(secret for secret in (head.api_key, head.azure_key) if secret)
    return found


def _refused(head: RequestHead, setting: str | None = None) -> ClientError:
    """The error for a missing or wrong key; ``setting``: the one that holds the key, if it is not a client's."""
    if _secrets(head):
        message = f"The key is not {setting}." if setting else "The API key is not valid here."
    else:
        ways = "as 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"
        message = f"{setting or 'An API key'} is required, {ways}."
    return ClientError(message, status=401, code="invalid_api_key")
