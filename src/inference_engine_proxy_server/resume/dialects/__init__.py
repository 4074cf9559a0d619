"""The APIs whose streams are resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_engine_proxy_server.resume.dialect import Dialect
from inference_engine_proxy_server.resume.dialects.completions import Completions
from inference_engine_proxy_server.resume.dialects.messages import Messages
from inference_engine_proxy_server.resume.dialects.responses import Responses

__all__ = ["DIALECTS"]

_ALL: tuple[Dialect[Any], ...] = (Completions(), Messages(), Responses())

DIALECTS: Mapping[str, Dialect[Any]] = {path: dialect for dialect in _ALL for path in dialect.paths}
"""By path."""
