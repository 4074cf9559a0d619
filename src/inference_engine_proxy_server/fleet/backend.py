"""One backend: its configuration, its latest report, its health and its load."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.fleet.loaded_models import LoadedModels, SwapRules
from inference_engine_proxy_server.fleet.serving import Serving
from inference_engine_proxy_server.wire.backend_connections import BackendConnections

__all__ = ["Backend", "Trial"]

_NO_REPORT = BackendState(ready=False)
_USUAL_SWAP_RULES = SwapRules()


class Trial(Protocol):
    """The request that tests whether a suspended backend works again."""

    @property
    def is_open(self) -> bool:
        """Whether the request is still in progress."""


class Backend:
    """One backend of the fleet.

    Args:
        config: its configuration.
        connections: its connections.
        health: judges its health.
        load: its requests.
        swap_rules: how its models take turns, if it loads and unloads them.

    Attributes:
        url: base URL.
        reply_field: the ``x-backend`` header line of replies from this backend.
        credentials: header lines with the backend's own API key; ``None`` when it has none.
        serving: the models that it serves.
        loaded_models: its models, if it loads and unloads them; ``None`` for all other backends.
        models_known: whether ``serving`` comes from a report or from the configuration.
        memory_tokens: size of its KV cache in tokens; ``None`` if it never reported that.
        engine: name of its engine; ``None`` before that is known.
        health_path: any answer at this path shows that it is not frozen.
        reported_at: when it last reported its state, in seconds since the epoch; 0 before the first report.
        is_draining: an operator took it out of rotation.
        takes_requests: it is in rotation.
        is_live: it works, even if it is busy or suspended.
        is_awaited: it joined the fleet and has neither answered nor failed yet, so requests wait for it.
        is_last_choice: it gets a request only when no other backend is free.
        recheck: set when it should be polled at once instead of after the usual interval.
    """

    __slots__ = (
        "_load_reported_at", "_trial", "config", "connections", "credentials", "engine", "health", "health_path",
        "is_awaited", "is_draining", "is_last_choice", "is_live", "load", "loaded_models", "memory_tokens",
        "models_known", "recheck", "reply_field", "reported_at", "serving", "swap_rules", "takes_requests", "url",
    )  # fmt: skip

    def __init__(
        self,
        config: BackendConfig,
        connections: BackendConnections,
        health: HealthTracker,
        load: BackendLoad,
        swap_rules: SwapRules = _USUAL_SWAP_RULES,
    ) -> None:
        self.url = config.url
        self.reply_field = f"x-backend: {config.url}\r\n".encode()
        self.connections = connections
        self.health = health
        self.load = load
        self.swap_rules = swap_rules
        self.loaded_models: LoadedModels | None = None
        self.models_known = config.models is not None
        self.serving = Serving.of((), _NO_REPORT, config) if self.models_known else Serving()
        self.memory_tokens: int | None = None
        self.engine: str | None = None
        self.health_path = "/health"
        self.reported_at = 0.0
        self.is_draining = False
        self.takes_requests = False
        self.is_live = False
        self.is_awaited = True
        self.is_last_choice = False
        self.recheck = asyncio.Event()
        self._trial: Trial | None = None
        self._load_reported_at = -math.inf  # -inf: not since the backend came up
        self.credentials: bytes | None
        self.configure(config)

    def __repr__(self) -> str:
        flags = [name for name in ("takes_requests", "is_draining", "is_last_choice") if getattr(self, name)]
        return f"<Backend {self.url} {self.health.state.value} {' '.join([*flags, repr(self.load)])}>"

    def configure(self, config: BackendConfig) -> None:
        """Apply ``config``. What also depends on reports, such as models and capacity, changes with the next report."""
        self.config = config
        key = config.api_key
        self.credentials = None if key is None else f"authorization: Bearer {key.get_secret_value()}\r\n".encode()

    def update_serving(self, state: BackendState) -> bool:
        """Adopt the models of ``state``, if it has any. Returns whether this changes what can be routed here."""
        if state.models is None:
            return False
        was_known, self.models_known = self.models_known, True
        before, self.serving = self.serving, Serving.of(state.models, state, self.config)
        is_other_kind = (self.loaded_models is not None) is not bool(state.model_reports)
        if is_other_kind:
            swaps = bool(state.model_reports)
            self.loaded_models = LoadedModels(self.url, self.load, self.swap_rules) if swaps else None
        if self.loaded_models is not None:
            self.loaded_models.adopt_list(state.models)
        return not was_known or is_other_kind or not before.routes_like(self.serving)

    def update_load(
        self, state: BackendState, *, own_at_poll: int, allowance: int, now: float, asked_at: float = math.inf
    ) -> None:
        """Adopt the load and the capacity of ``state``.

        Args:
            state: the report.
            own_at_poll: how many of its requests came through this proxy.
            allowance: requests that the backend, or each of its models, may have beyond the slots.
            now: a reading of the clock.
            asked_at: when the poll was sent.
        """
        if self.loaded_models is not None:
            self._update_models(self.loaded_models, state, allowance, now, asked_at)
            return
        if state.requests_processing is not None:
            polled = state.requests_processing + (state.requests_waiting or 0.0)
            self.load.set_foreign(max(0.0, polled - own_at_poll))
            self._load_reported_at = now
        self.load.set_slots(self.config.capacity or state.capacity, allowance)
        self.memory_tokens = state.memory_tokens or self.memory_tokens  # a poll without this figure does not erase it

    def _update_models(
        self, models: LoadedModels, state: BackendState, allowance: int, now: float, asked_at: float
    ) -> None:
        if state.model_reports:  # else the poll got no list of models
            places = self.config.max_loaded_models or state.most_models
            self.load.set_slots(None, allowance)  # only its models have slots
            models.adopt(state.model_reports, places, self.config.capacity, allowance, asked_at)
            self._load_reported_at = now

    def begin_trial(self, trial: Trial) -> None:
        """``trial`` tests whether this backend works again; until it ends, the backend gets no other requests."""
        self._trial = trial
        self.takes_requests = False

    def review(self, now: float, evidence_seconds: float) -> None:
        """Update the attributes that follow from health and from the age of reports.

        Args:
            now: a reading of the clock.
            evidence_seconds: age above which a reported load is ignored.
        """
        health = self.health
        health.review(now, self.connections.activity())
        self.is_live = health.state in (Health.UP, Health.BUSY, Health.SUSPECT) or health.is_in_question
        self.is_awaited = health.is_unknown and not self.is_draining
        if not self.is_live:
            self._load_reported_at = -math.inf
        load_is_old = self._load_reported_at < now - evidence_seconds
        if load_is_old:
            self.load.set_foreign(0.0)
            if self.loaded_models is not None:
                self.loaded_models.forget_reported_load()
        self.is_last_choice = health.is_last_choice or (load_is_old and self._load_reported_at > -math.inf)
        is_being_tried = health.on_trial and self._trial is not None and self._trial.is_open
        self.takes_requests = health.takes_requests and not self.is_draining and not is_being_tried
