"""One backend: whether the proxy can reach it, and whether it answers as an engine does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.engine_checks import check_engine
from inference_engine_proxy_server.doctor.engine_state import fetch_replicas
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.doctor.probe import Failure, Probe, ProbeError, ProbeReply
from inference_engine_proxy_server.fleet.drift import Replica

__all__ = ["Examined", "examine_backend", "failure_finding"]

_USUAL_PORTS = {8080: "llama.cpp", 9931: "llama.cpp's new default", 8000: "vLLM", 30000: "SGLang", 11434: "Ollama",
                1234: "LM Studio", 5001: "KoboldCpp", 5000: "TabbyAPI"}  # fmt: skip
_CLOCK_SECONDS = 30  # difference that matters: of log lines, and of certificates and tokens with a short life
_EXPIRY_DAYS = 14
_MODELS = "/v1/models"


@dataclass(slots=True)
class Examined:
    """A backend after its examination.

    Attributes:
        config: the backend.
        findings: about this backend alone.
        models: the entries of its list of models; empty if it has none.
        replicas: the same models, with all that the engine reports of them.
    """

    config: BackendConfig
    findings: list[Finding] = field(default_factory=list)
    models: Sequence[Mapping[str, Any]] = ()
    replicas: Sequence[Replica] = ()


def examine_backend(config: BackendConfig, settings: Settings, engines: Engines) -> Examined:
    """Ask a backend, as the proxy would."""
    key = None if config.api_key is None else config.api_key.get_secret_value()
    probe = Probe(config.url, key, settings.backend_ca_file)
    examined = Examined(config)
    subject = f"backend {config.name}"
    try:
        reply = probe.get(_MODELS)
    except ProbeError as error:
        examined.findings.append(failure_finding(subject, "backend", probe, error))
        return examined
    problem = _problem_of(reply, probe, has_key=key is not None)
    if problem is not None:
        code, severity, text, remedy = problem
        examined.findings.append(Finding(code, severity, subject, text, remedy))
        return examined
    examined.findings += _clock(reply, subject, time.time())
    examined.findings += expiring(reply, subject, time.time())
    examined.models = [entry for entry in reply.json["data"] if isinstance(entry, dict)]
    examined.findings += check_engine(subject, probe, examined.models, settings)
    examined.replicas = fetch_replicas(config, probe, engines)
    return examined


def failure_finding(subject: str, what: str, probe: Probe, error: ProbeError) -> Finding:
    """The finding about a server that gives no HTTP reply.

    Args:
        what: the kind of server, which begins the codes: ``backend`` or ``public``.
    """
    code, problem, remedy = _FAILURES[error.failure](probe)
    if what == "public" and error.failure is Failure.CERTIFICATE_UNKNOWN:
        remedy = "Use a certificate from an authority that clients trust, or install the authority there."
    return Finding(f"{what}_{code}", Severity.ERROR, subject, f"{problem} ({error}).", remedy)


def expiring(reply: ProbeReply, subject: str, now: float) -> Iterator[Finding]:
    """The finding about a certificate that ends soon."""
    if reply.certificate_expires_at is None:
        return
    days = (reply.certificate_expires_at - now) / 86_400
    if days < _EXPIRY_DAYS:
        problem = f"Its certificate expires in {days:.0f} days."
        yield Finding("certificate_expires_soon", Severity.WARNING, subject, problem, "Renew it.")


def _unknown_host(probe: Probe) -> tuple[str, str, str]:
    return "unknown_host", f"The name {probe.host} cannot be resolved", "Correct the URL, or the DNS entry."


def _refused(probe: Probe) -> tuple[str, str, str]:
    others = [
        f"{probe.host}:{port} ({engine}) answers"
        for port, engine in _USUAL_PORTS.items()
        if port != probe.port and _answers(probe.without_tls(port))
    ]
    hint = f" {', and '.join(others)}: is it that one?" if others else ""
    return "refuses", f"Nothing listens on port {probe.port}", f"Start the server, or correct the port.{hint}"


def _answers(probe: Probe) -> bool:
    try:
        return probe.get(_MODELS).status < 500
    except ProbeError:
        return False


def _unreachable(_probe: Probe) -> tuple[str, str, str]:
    return "unreachable", "There is no way to it", "Check the network, the firewall and the URL."


def _timeout(probe: Probe) -> tuple[str, str, str]:
    if probe.is_tls and _answers(probe.without_tls()):
        return _no_tls(probe)
    problem = f"It does not answer within {probe.seconds:g} s"
    return "timeout", problem, "Check whether a firewall drops packets, or the server hangs."


def _expired(_probe: Probe) -> tuple[str, str, str]:
    return "certificate_expired", "Its certificate has expired", "Renew it."


def _other_name(probe: Probe) -> tuple[str, str, str]:
    remedy = "Use a name from the certificate in the URL, or issue one for this name."
    return "certificate_name", f"Its certificate is not for {probe.host}", remedy


def _unknown_authority(_probe: Probe) -> tuple[str, str, str]:
    problem = "Its certificate is from an authority that this machine does not trust"
    return "certificate_unknown", problem, "Name the authority's certificate in BACKEND_CA_FILE."


def _no_tls(_probe: Probe) -> tuple[str, str, str]:
    return "no_tls", "It does not speak TLS on this port", "Write http:// instead of https://, or enable TLS there."


def _no_http(probe: Probe) -> tuple[str, str, str]:
    if not probe.is_tls and probe.speaks_tls():
        return "needs_tls", "It speaks only TLS on this port", "Write https:// instead of http://."
    return "no_http", "It does not answer with HTTP", "Correct the port: another program listens on it."


_FAILURES: Mapping[Failure, Callable[[Probe], tuple[str, str, str]]] = {
    Failure.UNKNOWN_HOST: _unknown_host,
    Failure.REFUSED: _refused,
    Failure.UNREACHABLE: _unreachable,
    Failure.TIMEOUT: _timeout,
    Failure.CERTIFICATE_EXPIRED: _expired,
    Failure.CERTIFICATE_NAME: _other_name,
    Failure.CERTIFICATE_UNKNOWN: _unknown_authority,
    Failure.NO_TLS: _no_tls,
    Failure.NO_HTTP: _no_http,
}


def _problem_of(reply: ProbeReply, probe: Probe, *, has_key: bool) -> tuple[str, Severity, str, str] | None:
    """Why ``reply`` is no list of models; ``None`` if it is one."""
    status = reply.status
    if status in (401, 403):
        problem = f"It answers {status}: it rejects {'this API key' if has_key else 'requests without an API key'}."
        return (
            "backend_rejects_key",
            Severity.ERROR,
            problem,
            "Set api_key or api_key_env of the backend, or BACKEND_API_KEY.",
        )
    if status == 503:
        return (
            "backend_loading",
            Severity.NOTE,
            "It answers 503: it is loading its model, or busy.",
            "Wait, and ask again.",
        )
    if status == 400 and not probe.is_tls and probe.speaks_tls():
        return (
            "backend_needs_tls",
            Severity.ERROR,
            "It speaks only TLS on this port.",
            "Write https:// instead of http://.",
        )
    if status == 404 and probe.path.endswith("/v1"):
        problem = "Its URL ends with /v1, and paths of requests already begin with it."
        return "backend_url_ends_with_v1", Severity.ERROR, problem, "Remove /v1 from the URL."
    found = reply.json
    if status != 200 or not isinstance(found, dict) or not isinstance(found.get("data"), list):
        problem = f"It answers GET {probe.path}{_MODELS} with {status}, and not with a list of models."
        return "backend_is_no_engine", Severity.ERROR, problem, "Correct the URL: another program answers there."
    return None


def _clock(reply: ProbeReply, subject: str, now: float) -> Iterator[Finding]:
    if reply.sent_at is not None and abs(reply.sent_at - now) > _CLOCK_SECONDS:
        problem = f"Its clock differs by {abs(reply.sent_at - now):.0f} s from this machine's."
        yield Finding("clock_differs", Severity.WARNING, subject, problem, "Synchronize both, for example with chrony.")
