"""Hooks of MkDocs: pages from the root of the repository, links that leave docs/, anchors as GitHub makes them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parent.parent
_PROJECT_PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "README.zh-TW.md")
_LINK_OR_CODE = re.compile(
    r"^[ ]*```.*?^[ ]*```[ ]*$"  # a block of code
    r"|(?P<image>!?)\[(?P<text>(?:[^][]|\[[^][]*\])*)\]\((?P<target>[^)\s]+)\)"
    r"|`[^`]+`",
    re.MULTILINE | re.DOTALL,
)


def on_config(config: Any) -> None:
    """Make anchors that are the same on GitHub and on the site."""
    config.mdx_configs["toc"]["slugify"] = _anchor


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, below ``project/``."""
    for name in _PROJECT_PAGES:
        files.append(File.generated(config, f"project/{name}", content=(_ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to pages of the site, and links to other files of the repository to ``repo_url``."""
    uri = page.file.src_uri
    folder = "" if uri.startswith("project/") else posixpath.dirname(f"docs/{uri}")

    def pointed(link: re.Match[str]) -> str:
        target, hash_, anchor = (link["target"] or "").partition("#")
        if not target or ":" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if (on_site := _on_site(path, files)) is not None:
            relative = posixpath.relpath(on_site, posixpath.dirname(uri) or ".")
            return f"{link['image']}[{link['text']}]({relative}{hash_}{anchor})"
        if not (_ROOT / path).exists():
            return link[0]  # MkDocs reports it
        if not config.repo_url:
            return link["text"]
        kind = "tree" if (_ROOT / path).is_dir() else "blob"
        return f"[{link['text']}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{hash_}{anchor})"

    return _LINK_OR_CODE.sub(pointed, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:  # noqa: ARG001 - MkDocs gives arguments by name
    """Name the language of Chinese pages, for fonts and screen readers."""
    is_chinese = "zh-TW" in page.file.src_uri
    return output.replace('<html lang="en"', '<html lang="zh-TW"', 1) if is_chinese else output


def _anchor(heading: str, separator: str) -> str:
    """Lower case, hyphens for blanks, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def _on_site(path: str, files: Files) -> str | None:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return path  # docs/README.md has its place
    uri = path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"
    return uri if files.get_file_from_path(uri) is not None else None
