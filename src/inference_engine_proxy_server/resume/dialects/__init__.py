"""The APIs whose streams are resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference_engine_proxy_server.resume.dialect import Dialect
from inference_engine_proxy_server.resume.dialects.completions import Completions
from inference_engine_proxy_server.resume.dialects.messages import Messages

__all__ = ["DIALECTS"]

DIALECTS: Mapping[str, Dialect[Any]] = {
    path: dialect for dialect in (Completions(), Messages()) for path in dialect.paths
}
"""By path."""
