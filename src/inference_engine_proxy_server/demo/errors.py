"""The demo's error."""

from __future__ import annotations

__all__ = ["INSTALL_HINT", "DemoUnavailable"]

INSTALL_HINT = "pip install '.[demo]' in the folder of this project"


class DemoUnavailable(Exception):
    """The demo cannot run; the message is one line with the reason and the remedy."""
