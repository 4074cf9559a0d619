"""Installed versions of the program, as docs/systemd.md has them: folders, and the link `current` to one of them."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import inference_engine_proxy_server

__all__ = ["FOLDERS", "Versions"]

_SCRIPT = """\
#!{python}
import sys
sys.path[:0] = {folders}
{before}
import inference_engine_proxy_server
inference_engine_proxy_server.__version__ = "{version}"
from inference_engine_proxy_server.cli import main
sys.exit(main())
"""
FOLDERS = (str(Path(inference_engine_proxy_server.__file__).parents[1]), sysconfig.get_path("purelib"))
"""What an installed version needs besides the interpreter: the source of the program, and other packages."""


class Versions:
    """The folder of all versions.

    Args:
        folder: is created.
        python: the interpreter that they use.
        folders: where they find packages.
    """

    def __init__(self, folder: Path, python: str = sys.executable, folders: Sequence[str] = FOLDERS) -> None:
        folder.mkdir()
        self._folder = folder
        self._python = python
        self._folders = list(folders)
        self.program = folder / "current/bin/inference-proxy"

    def install(self, version: str, *, before: str = "") -> None:
        """Install a version, and make it the current one. ``before``: code that it runs first."""
        script = self._folder / version / "bin/inference-proxy"
        script.parent.mkdir(parents=True)
        text = _SCRIPT.format(python=self._python, folders=self._folders, before=before, version=version)
        script.write_text(text)
        script.chmod(0o755)
        link = self._folder / ".current"
        link.symlink_to(version)
        link.rename(self._folder / "current")
