"""All backends together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from inference_engine_proxy_server.doctor.backend_checks import Examined
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.fleet.difference import Aspect
from inference_engine_proxy_server.fleet.drift import differences

__all__ = ["check_fleet"]

_CODES: Mapping[Aspect, str] = {
    Aspect.WEIGHTS: "weights_differ",
    Aspect.SOURCE: "sources_differ",
    Aspect.TOKENIZER: "tokenizers_differ",
    Aspect.TEMPLATE: "chat_templates_differ",
    Aspect.CONTEXT: "contexts_differ",
    Aspect.NAMES: "model_names_differ",
    Aspect.SLOTS: "slots_differ",
    Aspect.VERSION: "versions_differ",
}


def check_fleet(examined: Sequence[Examined]) -> Iterator[Finding]:
    """Findings about backends that should be alike."""
    if examined and not any(one.models for one in examined):
        yield Finding(
            "no_backend_works",
            Severity.ERROR,
            "fleet",
            "No backend answers with a list of models, so that the proxy can serve no request.",
            "Correct the findings about the backends.",
        )
    names = {one.config.url: one.config.name for one in examined}
    for difference in differences(replica for one in examined for replica in one.replicas):
        severity = Severity.WARNING if difference.is_warning else Severity.NOTE
        subject, text = f"model {difference.model}", difference.sentence(names)
        yield Finding(_CODES[difference.aspect], severity, subject, text, difference.remedy)
