"""The names of OpenTelemetry's conventions for generative AI, as Envoy AI Gateway exports them to Prometheus.

Sources, read November 2026: semantic-conventions 1.41, "GenAI metrics"; envoyproxy/ai-gateway, internal/metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from inference_engine_proxy_server.telemetry.exposition import Labels, histogram_family
from inference_engine_proxy_server.telemetry.histogram import Histogram
from inference_engine_proxy_server.telemetry.routes import OPERATIONS
from inference_engine_proxy_server.telemetry.traffic import Traffic

__all__ = ["genai_families"]

_PROVIDER = "inference_proxy"

_Pick = Callable[[Traffic], Histogram]

_TIMES: tuple[tuple[str, str, _Pick], ...] = (
    ("server_request_duration", "Seconds to the end of the reply.", lambda traffic: traffic.seconds),
    ("server_time_to_first_token", "Seconds to the first event of a stream.", lambda traffic: traffic.first_tokens),
    (
        "server_time_per_output_token",
        "Average seconds between two tokens of a stream.",
        lambda traffic: traffic.inter_tokens,
    ),
)
_TOKENS: tuple[tuple[str, _Pick], ...] = (
    ("input", lambda traffic: traffic.prompt_tokens),
    ("output", lambda traffic: traffic.output_tokens),
)


def genai_families(traffic: Iterable[Traffic], labels: Labels) -> Iterator[str]:
    """The families, derived from ``traffic``."""
    groups: dict[tuple[str, str], list[Traffic]] = {}
    for one in traffic:
        if operation := OPERATIONS.get(one.route):
            groups.setdefault((operation, one.model), []).append(one)
    for name, text, pick in _TIMES:
        samples = [(_labels(labels, *group), _merged(pick, members)) for group, members in groups.items()]
        yield from histogram_family(f"gen_ai_{name}", text, samples)
    yield from histogram_family(
        "gen_ai_client_token_usage",
        "Tokens of each request.",
        (
            (_labels(labels, *group, gen_ai_token_type=kind), _merged(pick, members))
            for group, members in groups.items()
            for kind, pick in _TOKENS
        ),
    )


def _labels(labels: Labels, operation: str, model: str, **more: str) -> str:
    return labels.of(
        gen_ai_operation_name=operation,
        gen_ai_provider_name=_PROVIDER,
        gen_ai_request_model=model,
        gen_ai_response_model=model,
        **more,
    )


def _merged(pick: _Pick, members: list[Traffic]) -> Histogram:
    first, *others = map(pick, members)
    if not others:
        return first
    merged = Histogram(first.bounds)
    for one in (first, *others):
        merged.merge(one)
    return merged
