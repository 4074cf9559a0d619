"""Mistakes of environment variables that other programs make: quotes, comments, and addresses of services."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["explanation", "quoted"]

# Kubernetes sets NAME_PORT for each service of the namespace; Docker's legacy links do the same.
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+", re.IGNORECASE)
_COMMENT = re.compile(r"\s#")


def quoted(environ: Mapping[str, str]) -> set[str]:
    """The names of variables whose value is in quotes, which a shell would have removed."""
    return {
        name
        for name, value in environ.items()
        if len(text := value.strip()) > 1 and text[0] == text[-1] and text[0] in "'\""
    }


def explanation(name: str, value: str) -> str | None:
    """Why the variable ``name`` has a ``value`` that is invalid, and what to do; ``None`` when nothing is known."""
    if name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value):
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        return (
            f"Kubernetes sets this variable for a service that is named {service!r}; rename the service, or set "
            f"'enableServiceLinks: false' in the pod"
        )
    if _COMMENT.search(value):
        return "`docker run --env-file` keeps comments after a value; put them on lines of their own"
    return None
