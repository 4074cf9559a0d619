"""The fingerprint of a llama.cpp server with one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from inference_engine_proxy_server.backends.fingerprint import Fingerprint, Weights, template_hash, weights_of
from inference_engine_proxy_server.backends.replies import Get, ModelEntry, decoded
from inference_engine_proxy_server.backends.tokenizer_probe import TokenizerProbe

__all__ = ["LlamaCppFingerprints"]


class LlamaCppFingerprints:
    """Keeps the fingerprints of one server, and asks its tokenizer once.

    A server process is known by its ``/props`` page, which is constant while it is awake. It has the whole
    configuration, and since build 11549 a random ``media_marker``, so that another process has another page.

    Args:
        get: asks the backend.
    """

    def __init__(self, get: Get) -> None:
        self._get = get
        self._made_of: tuple[bytes, list[tuple[str, Weights | None]]] | None = None
        self._known: Mapping[str, Fingerprint] = {}
        self._tokenizer = TokenizerProbe(get, content=...)

    async def of(
        self, props_page: bytes, models: Sequence[ModelEntry] | None, *, is_sleeping: bool
    ) -> Mapping[str, Fingerprint]:
        """The fingerprints by model id.

        Args:
            props_page: the reply of ``/props``; empty without one.
            models: as reported; ``None`` without a report.
            is_sleeping: the server sleeps; the question would wake it.
        """
        if is_sleeping or not props_page or models is None:
            return self._known
        weights = [(entry["id"], weights_of(entry)) for entry in models]
        if self._made_of != (props_page, weights):
            self._made_of, self._tokenizer = (props_page, weights), TokenizerProbe(self._get, content=...)
            props = decoded(props_page, _Props) or _Props()
            template, slots, version = template_hash(props.chat_template), props.total_slots, props.build_info
            self._known = {
                model: Fingerprint(size, None, template, None, slots, version, "llamacpp") for model, size in weights
            }
        tokenizer = await self._tokenizer.hash()
        if any(one.tokenizer != tokenizer for one in self._known.values()):
            self._known = {model: replace(one, tokenizer=tokenizer) for model, one in self._known.items()}
        return self._known


class _Props(msgspec.Struct):
    chat_template: str | None = None
    total_slots: int | None = None
    build_info: str | None = None
