"""Settings that contradict each other, have no effect, or are in the wrong order. Reads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import LoadedSettings
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["check_settings", "ignored_settings"]

_EXPECTED_TIME = "expected_time"
_LOOPBACK = ("127.", "::1", "localhost")
_PROXY_IDLE_SECONDS = 60  # NGINX: proxy_read_timeout, and keepalive_timeout in an upstream
_ENGINE_IDLE_SECONDS = 5  # uvicorn's timeout_keep_alive, of vLLM; llama.cpp's is the same

# A setting that is set, the condition without which it has no effect, and that condition in words.
_WITHOUT_EFFECT: Mapping[str, tuple[Callable[[Configuration], bool], str]] = {
    "access_log_probes": (lambda all_: all_.settings.access_log, "ACCESS_LOG is true"),
    "forward_client_key": (lambda all_: _has_keys(all_.settings), "API_KEYS or API_KEYS_FILE is set"),
    "prefix_index_bytes": (
        lambda all_: all_.settings.shadow_policy is not None or _is_used(_EXPECTED_TIME, all_),
        f"a BALANCING_POLICY is {_EXPECTED_TIME}, or SHADOW_POLICY is set",
    ),
    "state_prefix": (lambda all_: all_.settings.state_url is not None, "STATE_URL is set"),
    "stream_resume_comments": (lambda all_: all_.settings.stream_resume != "off", "STREAM_RESUME is on or header"),
    "tier_penalty_seconds": (
        lambda all_: _is_used(_EXPECTED_TIME, all_),
        f"a BALANCING_POLICY, or SHADOW_POLICY, is {_EXPECTED_TIME}",
    ),
}


def _has_keys(settings: Settings) -> bool:
    return bool(settings.api_keys or settings.api_keys_file)


def _is_used(policy: str, configuration: Configuration) -> bool:
    policies = (
        configuration.settings.balancing_policy,
        configuration.settings.shadow_policy,
        *(one.balancing_policy for one in configuration.models.values()),
    )
    return policy in policies


def check_settings(loaded: LoadedSettings) -> Iterator[Finding]:
    """Findings about settings that could be loaded."""
    yield from _without_effect(loaded)
    yield from _contradictions(loaded.settings)
    yield from _timeouts(loaded)
    yield from _in_front(loaded.settings)


def ignored_settings(loaded: LoadedSettings) -> Iterator[Finding]:
    """Findings about names and values that were read and are not used."""
    for warning in loaded.warnings:
        subject, _, text = warning.partition(": ")
        problem = text if text.endswith("?") else f"{text}."
        yield Finding("setting_ignored", Severity.WARNING, subject, problem, "Correct or remove it.")


def _without_effect(loaded: LoadedSettings) -> Iterator[Finding]:
    for field, (has_effect, condition) in _WITHOUT_EFFECT.items():
        if loaded.origins[field.upper()] != "default" and not has_effect(loaded.configuration):
            yield Finding(
                "setting_without_effect",
                Severity.WARNING,
                field.upper(),
                f"It has no effect unless {condition}.",
                "Remove it, or set the other setting.",
            )


def _contradictions(settings: Settings) -> Iterator[Finding]:
    if settings.forward_client_key and settings.backend_api_key is not None:
        yield Finding(
            "contradiction",
            Severity.WARNING,
            "FORWARD_CLIENT_KEY",
            "BACKEND_API_KEY replaces the client's key, so that it is not forwarded.",
            "Remove one of the two.",
        )
    if not _has_keys(settings) and not settings.host.startswith(_LOOPBACK):
        yield Finding(
            "no_api_keys",
            Severity.NOTE,
            "HOST",
            f"The proxy listens on {settings.host} without API keys: who reaches the port can use all models.",
            "Set API_KEYS, or let only trusted networks reach the port.",
        )


def _timeouts(loaded: LoadedSettings) -> Iterator[Finding]:
    settings = loaded.settings
    first_byte = settings.backend_first_byte_timeout_seconds or settings.backend_timeout_seconds
    if 0 < settings.request_timeout_seconds <= settings.queue_timeout_seconds:
        yield _order("REQUEST_TIMEOUT_SECONDS", "QUEUE_TIMEOUT_SECONDS", "requests may end before they get a backend")
    if settings.first_token_timeout_seconds > first_byte:
        yield _order("BACKEND_TIMEOUT_SECONDS", "FIRST_TOKEN_TIMEOUT_SECONDS", "it ends the wait for a first event")
    if settings.suspect_after_seconds >= first_byte:
        yield _order("BACKEND_TIMEOUT_SECONDS", "SUSPECT_AFTER_SECONDS", "requests fail before the backend is suspect")
    for name, model in loaded.configuration.models.items():
        wait = model.fallback_after_seconds
        if wait is not None and wait >= settings.queue_timeout_seconds:
            yield _order(
                "QUEUE_TIMEOUT_SECONDS", f"fallback_after_seconds of the model {name}", "a fallback is never used"
            )
    if settings.backend_idle_connection_seconds >= _ENGINE_IDLE_SECONDS:
        yield Finding(
            "timeouts_out_of_order",
            Severity.WARNING,
            "BACKEND_IDLE_CONNECTION_SECONDS",
            f"vLLM and llama.cpp close idle connections after {_ENGINE_IDLE_SECONDS} s, and may close one just as the "
            "proxy uses it.",
            f"Set it below {_ENGINE_IDLE_SECONDS}, or raise the engines' limit.",
        )


def _in_front(settings: Settings) -> Iterator[Finding]:
    """Timeouts that matter with another proxy in front, which TRUSTED_PROXIES tells."""
    if not settings.trusted_proxies:
        return
    if not 0 < settings.stream_heartbeat_seconds < _PROXY_IDLE_SECONDS:
        yield Finding(
            "timeouts_out_of_order",
            Severity.WARNING,
            "STREAM_HEARTBEAT_SECONDS",
            f"The proxy in front may end a stream after {_PROXY_IDLE_SECONDS} s without a byte (NGINX: "
            "proxy_read_timeout), for example while a long prompt is read.",
            f"Set it between 1 and {_PROXY_IDLE_SECONDS - 1}.",
        )
    if settings.client_keep_alive_seconds <= _PROXY_IDLE_SECONDS:
        yield Finding(
            "timeouts_out_of_order",
            Severity.WARNING,
            "CLIENT_KEEP_ALIVE_SECONDS",
            f"NGINX reuses idle connections for {_PROXY_IDLE_SECONDS} s, and may use one just as the proxy closes it.",
            f"Set it above {_PROXY_IDLE_SECONDS}.",
        )


def _order(lower: str, higher: str, effect: str) -> Finding:
    """Two limits in the wrong order: ``lower`` is not above ``higher``, although it should be."""
    return Finding(
        "timeouts_out_of_order",
        Severity.WARNING,
        lower,
        f"It is not longer than {higher}, so {effect}.",
        f"Raise {lower}, or lower {higher}.",
    )
