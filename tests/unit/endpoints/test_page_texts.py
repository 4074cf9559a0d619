"""The page says everything in English and in Traditional Chinese."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import inference_engine_proxy_server.endpoints.page

PAGE = Path(inference_engine_proxy_server.endpoints.page.__file__).with_suffix("")
PARTS = ("overview", "views")
# The same in every language: names of units, of settings, and a text that is only made of values.
UNTRANSLATED = {
    "column.ttft50", "column.ttft95", "differ.between", "history.p50", "history.p95", "request.alias", "request.speed",
    "tool.language", "total.ttft50", "total.ttft95",
}  # fmt: skip


def texts_of(language: str) -> dict[str, str]:
    """All texts of a language; the files are JSON behind ``export default``."""
    found: list[tuple[str, str]] = []
    for part in PARTS:
        text = (PAGE / "i18n" / f"{language}.{part}.js").read_text()
        json.loads(text.removeprefix("export default ").removesuffix(";\n"), object_pairs_hook=found.extend)
    assert [key for key, count in Counter(key for key, _ in found).items() if count > 1] == []
    return dict(found)


ENGLISH, CHINESE = texts_of("en"), texts_of("zh-TW")
SOURCES = "\n".join(file.read_text() for file in (PAGE / "index.html", *PAGE.glob("*.js")))


def test_both_languages_have_every_text() -> None:
    assert ENGLISH.keys() == CHINESE.keys()
    assert [key for key in ENGLISH if not ENGLISH[key].strip() or not CHINESE[key].strip()] == []


def test_both_languages_show_the_same_values() -> None:
    def values(texts: dict[str, str]) -> dict[str, set[str]]:
        return {key: set(re.findall(r"{(\w+)}", text)) for key, text in texts.items()}

    assert values(ENGLISH) == values(CHINESE)


def test_every_text_is_translated() -> None:
    assert {key for key, text in CHINESE.items() if not re.search("[\u4e00-\u9fff]", text)} == UNTRANSLATED


def test_no_simplified_character_is_in_the_traditional_texts() -> None:
    simplified = set("请发户务动应处备个们时对无问题开关设议录据数单页错误显类层轮队启输图选择检")
    assert {key for key, text in CHINESE.items() if simplified & set(text)} == set()


def test_every_text_that_the_page_names_exists() -> None:
    named = set(re.findall(r"""\b(?:t|worded)\("([a-zA-Z0-9.]+)\"""", SOURCES))
    named |= set(re.findall(r"""(?:text|label|hint|ghost): "([a-zA-Z0-9.]+)\"""", SOURCES))
    named |= set(re.findall(r'data-(?:text|label|hint|ghost)="([^"]+)"', SOURCES))
    assert len(named) > 100
    assert named - ENGLISH.keys() == set()


def test_every_text_is_used() -> None:
    """As it is, or made of a prefix and the name of a state, a column or another fact."""
    prefixes = tuple(re.findall(r"`([a-z]+\.(?:[a-z]+\.)?)\$\{", SOURCES))
    unused = {key for key in ENGLISH if f'"{key.removesuffix(".one")}"' not in SOURCES and not key.startswith(prefixes)}
    assert unused == set()


@pytest.mark.parametrize("state", ["ready", "busy", "frozen", "suspect", "down", "starting", "draining"])
def test_every_state_has_a_word_and_a_shape(state: str) -> None:
    assert f"state.{state}" in ENGLISH
    assert re.search(rf"^  {state}: \"M", (PAGE / "glyphs.js").read_text(), re.MULTILINE)
