"""Why the demo cannot run."""

from __future__ import annotations

__all__ = ["INSTALL_HINT", "DemoUnavailable"]

INSTALL_HINT = "pip install 'inference-engine-proxy-server[demo]'"


class DemoUnavailable(Exception):
    """The demo cannot run here; the message is one line that says what is wrong and what to do."""
