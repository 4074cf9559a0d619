"""The limits of API keys: which models a key permits, and how much it may use."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

from inference_engine_proxy_server.access.charge_observer import ChargeObserver
from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.models.rewriting import gets_default_model
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.path_policy import readings
from inference_engine_proxy_server.requests.unambiguous_model import unambiguous_model
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["KeyLimits"]

_LOOKUPS = frozenset({"/v1/streams/lookup", "/streams/lookup"})
_SHOWN = 200  # characters of a model name in an error


class KeyLimits:
    """Enforces the limits of keys.

    Args:
        clock: a monotonic clock, in seconds.
        catalog: the operator's names of models.
        is_served: whether a backend serves a model of a name, or has served it.
    """

    def __init__(self, clock: Callable[[], float], catalog: LiveCatalog, is_served: Callable[[str], bool]) -> None:
        self._clock = clock
        self._catalog = catalog
        self._is_served = is_served

    def begin(self, exchange: Exchange, access: Access) -> str | None:
        """Check ``exchange`` against the limits of its key, and count it as in flight until it ends.

        Returns:
            The model that the request names; ``None`` if the key permits every model, and the model was not read.

        Raises:
            ClientError: 403, the key does not permit the model.
            CapacityError: 429, a limit of the key is reached, or a budget of it is spent.
        """
        key, allowance = access.key, access.allowance
        model = None
        if key.models is not None:
            model = unambiguous_model(exchange.head.target, exchange.head.passed_on, exchange.body)
            if not self._permits(access, model, exchange):
                raise ClientError(_why_refused(exchange, model, key.models), status=403, code="model_not_permitted")
        now = self._clock()
        try:
            allowance.begin(now)
        finally:
            exchange.common_fields = allowance.fields(now)
        exchange.observers.add(ChargeObserver(exchange, allowance, self._clock))
        return model

    def _permits(self, access: Access, model: str | None, exchange: Exchange) -> bool:
        catalog = self._catalog.now
        if model is not None:
            return any(map(access.permits, catalog.permitting_names(model, self._is_served)))
        if _may_name_model(exchange):
            return False
        head, default = exchange.head, catalog.default_name
        if default is not None and gets_default_model(head.path, head.passed_on, exchange.body):
            return any(map(access.permits, catalog.permitting_names(default, self._is_served)))
        return _names_resource(exchange)


def _names_resource(exchange: Exchange) -> bool:
    """Whether the request only names resources, of which a key may use its own (:mod:`..dispatch.ownership`)."""
    head = exchange.head
    is_lookup = head.path in _LOOKUPS
    # Below such a path, an engine could read another one from dot segments.
    return is_lookup or (head.destination is Destination.NAMED and readings(head.path) == {head.path})


def _may_name_model(exchange: Exchange) -> bool:
    """Whether an engine could find a model in the request."""
    names = [name for name, _ in parse_qsl(exchange.head.target.partition(b"?")[2].decode(), keep_blank_values=True)]
    if exchange.body:
        members = all_members(exchange.body)
        if members is None:
            return not exchange.body.startswith(b"--") or b"model" in exchange.body.lower()
        names.extend(members)
    return any(name.lower() == "model" for name in names)


def _why_refused(exchange: Exchange, model: str | None, permitted: frozenset[str]) -> str:
    allowed = f"this key may only be used for: {', '.join(sorted(permitted))}."
    if model is not None:
        return f"This key may not use the model {model[:_SHOWN]!r}; {allowed}"
    if not _may_name_model(exchange):
        return f"The request names no model, and {allowed}"
    return (
        "This key is limited to certain models, and it is not certain which model the request names. Send one JSON "
        "object in UTF-8, or a form, with exactly one 'model', and none or the same one in the query."
    )
