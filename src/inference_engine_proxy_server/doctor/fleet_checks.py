"""All backends together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inference_engine_proxy_server.doctor.backend_checks import Examined
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["check_fleet"]


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
    by_identity: dict[object, list[tuple[str, str]]] = {}
    for one in examined:
        for entry in one.models if one.config.models is None else ():
            identity = _identity(entry)
            if identity is not None:
                by_identity.setdefault(identity, []).append((one.config.name, str(entry.get("id"))))
    for served in by_identity.values():
        if len({name for _, name in served}) > 1 and not _share_a_name(served):
            listed = ", ".join(f"{backend} calls it {name!r}" for backend, name in served)
            yield Finding(
                "model_names_differ",
                Severity.WARNING,
                "fleet",
                f"One model has several names: {listed}. Requests reach only the backends that know the name.",
                "Start the engines with one name (llama.cpp: --alias, vLLM: --served-model-name), or give the model "
                "aliases in the fleet file.",
            )


def _identity(entry: Mapping[str, Any]) -> object | None:
    """What two entries of the same model have in common; ``None`` if the engine tells too little."""
    meta = entry.get("meta")
    if isinstance(meta, dict) and meta.get("n_params") and meta.get("size"):  # llama.cpp
        return meta["n_params"], meta["size"], meta.get("n_vocab")
    root = entry.get("root")  # vLLM: the path or repository that was loaded
    return root if isinstance(root, str) and root and entry.get("parent") is None else None


def _share_a_name(served: Sequence[tuple[str, str]]) -> bool:
    """Whether one name reaches all backends of the model."""
    names_of: dict[str, set[str]] = {}
    for backend, name in served:
        names_of.setdefault(backend, set()).add(name)
    return bool(set.intersection(*names_of.values()))
