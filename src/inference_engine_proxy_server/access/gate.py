"""Admits or rejects a request by its header section: is there a key, and is it valid for this path?"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from inference_engine_proxy_server.access.allowances import Allowance, Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.destinations import (
    Destination,
    is_about_models,
    is_announcement,
    is_dashboard,
    is_usage,
    is_web_ui,
)
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Access", "Gate", "Viewer"]


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


@dataclass(frozen=True, slots=True)
class Viewer:
    """What a request for the dashboard may see.

    Attributes:
        has_key: it has the API key of a client.
        admin_key: ``unset``: there is no ADMIN_KEY, or it counts on ADMIN_PORT only; ``required``: the request does not
            have it; ``accepted``: it does, so it may see everything.
    """

    has_key: bool
    admin_key: Literal["unset", "required", "accepted"]

    @property
    def is_operator(self) -> bool:
        """Whether the request comes from an operator."""
        return self.admin_key == "accepted"


class Gate:
    """Checks the key in each request's header section, before the body is read.

    Args:
        ring: the keys of clients; ``None`` when no key is needed.
        allowances: the allowances of keys.
        admin_key: for ``/admin/``; ``None`` disables it.
        announce_key: for announcements of backends, and nothing else; ``None`` disables them.
        metrics_key: for ``/metrics``; ``None`` when it needs no key.
        operators_elsewhere: whether ``/admin/`` and ``/metrics`` are on a separate port.
    """

    def __init__(
        self,
        ring: KeyRing | None,
        allowances: Allowances,
        *,
        admin_key: str | None,
        announce_key: str | None = None,
        metrics_key: str | None,
        operators_elsewhere: bool,
    ) -> None:
        self._ring = ring
        self._allowances = allowances
        self._admin_digest = None if admin_key is None else digest_of(admin_key.encode())
        self._announce_digest = None if announce_key is None else digest_of(announce_key.encode())
        self._metrics_digest = None if metrics_key is None else digest_of(metrics_key.encode())
        self._operators_elsewhere = operators_elsewhere

    def admit(self, head: RequestHead) -> Access | Viewer | None:
        """The permissions of the request; ``None`` when it has no key and needs none.

        Raises:
            ClientError: 401, the key is missing or not valid for this path; 404, the path is not served here.
        """
        if head.destination is Destination.OPERATORS:
            if is_dashboard(head.path):
                return self._viewer(head, None if self._operators_elsewhere else self._admin_digest)
            if self._operators_elsewhere:
                raise ClientError("This is served on ADMIN_PORT.", status=404, code="not_here")
            self._require_operator(head)
        elif self._ring is not None:
            access: Access | None = head.access
            if access is not None and self._ring.still_has(access.key, access.keys):
                return access  # found for an equal header section
            key = self._key_of(head, self._ring)
            if key is not None:
                return Access(key, self._allowances.of(key), self._ring.keys)
            is_public = _is_open(head) or head.is_preflight or is_web_ui(head.method, head.path)
            if not is_public or head.destination is Destination.WEBSOCKET:
                raise _refused(head)
        return None

    def admit_operator(self, head: RequestHead) -> Viewer | None:
        """Like :meth:`admit`, but for ADMIN_PORT, which reaches no engine."""
        if head.destination is Destination.OPERATORS:
            if is_dashboard(head.path):
                return self._viewer(head, self._admin_digest)
            self._require_operator(head)
        elif not _is_open(head):
            raise ClientError("Only the proxy's own endpoints are served here.", status=404, code="not_here")
        return None

    def _viewer(self, head: RequestHead, admin_digest: bytes | None) -> Viewer:
        """The viewer of the dashboard. Without a key, a viewer sees the public part. A wrong key is rejected.

        Args:
            admin_digest: of the key of operators; ``None`` if there are none here.
        """
        if admin_digest is not None and _has_secret(head, admin_digest):
            return Viewer(has_key=True, admin_key="accepted")
        has_key = self._ring is not None and self._key_of(head, self._ring) is not None
        if admin_digest is not None and (head.admin_key or (_secrets(head) and not has_key)):
            raise _refused(head, "ADMIN_KEY")
        return Viewer(has_key=has_key, admin_key="unset" if admin_digest is None else "required")

    def _key_of(self, head: RequestHead, ring: KeyRing) -> ApiKey | None:
        """The client's valid key in the request; ``None`` if it has none."""
        for given in _secrets(head):
            key = ring.find(digest_of(given))
            if key is not None:
                return key
        return None

    def _require_operator(self, head: RequestHead) -> None:
        if is_announcement(head.path):
            self._require_announcer(head)
            return
        name, digest = "METRICS_KEY", self._metrics_digest
        if head.path.removesuffix("/") != "/metrics":
            name, digest = "ADMIN_KEY", self._admin_digest
            if digest is None:
                raise ClientError("/admin is off: ADMIN_KEY is not set.", status=404, code="admin_off")
        if digest is not None and not _has_secret(head, digest):
            raise _refused(head, name)

    def _require_announcer(self, head: RequestHead) -> None:
        """Operators may announce, too."""
        if self._announce_digest is None:
            text = "Backends cannot announce themselves here: ANNOUNCE_KEY is not set."
            raise ClientError(text, status=404, code="announcements_off")
        is_operator = self._admin_digest is not None and _has_secret(head, self._admin_digest)
        if not is_operator and not _has_secret(head, self._announce_digest):
            raise _refused(head, "ANNOUNCE_KEY")


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


def _has_secret(head: RequestHead, digest: bytes) -> bool:
    """Whether the request has the secret with this digest, as a client's key or in ``X-Admin-Key``."""
    given = [*_secrets(head), *([head.admin_key] if head.admin_key else [])]
    return any(hmac.compare_digest(digest_of(one), digest) for one in given)


def _refused(head: RequestHead, setting: str | None = None) -> ClientError:
    """The error for a missing or wrong key; ``setting``: the one that holds the key, if it is not a client's."""
    if _secrets(head) or (setting and head.admin_key):
        message = f"The key is not {setting}." if setting else "The API key is not valid here."
    else:
        ways = "as 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"
        message = f"{setting or 'An API key'} is required, {ways}."
    return ClientError(message, status=401, code="invalid_api_key")
