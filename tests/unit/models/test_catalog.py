"""Which model a name means, and which keys may use it."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.models.catalog import EMPTY, ModelCatalog, NamedModel
from support.fleet_files import catalog_of

CATALOG = catalog_of("""\
default_model: small
models:
  large:
    aliases: [gpt-4o, "claude-*", "claude-haiku-*", "*-mini", "gpt-*-mini"]
  small:
    aliases: [gpt-3.5, "claude-*-haiku"]
    hidden_aliases: true
  large-think:
    serves_as: large
    aliases: [o3]
    parameters: {set: {reasoning_effort: high}}
  large-think-briefly:
    serves_as: large-think
    parameters: {set: {max_tokens: 100}}
""")
SERVED = frozenset({"large", "small", "claude-local"})


def find(name: str, catalog: ModelCatalog = CATALOG) -> NamedModel | None:
    return catalog.find(name, SERVED.__contains__)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt-4o", "large"),
        ("gpt-3.5", "small"),
        ("large-think", "large"),
        ("large-think-briefly", "large"),
        ("o3", "large"),
        ("claude-opus-5", "large"),
        ("claude-", "large"),
        ("gpt-5-mini", "large"),
        ("claude-3-haiku", "small"),
        ("claude-x\ny", "large"),
    ],
)
def test_a_name_means_its_model(name: str, model: str) -> None:
    named = find(name)
    assert named is not None
    assert named.model == model


@pytest.mark.parametrize("name", ["unknown", "GPT-4O", "gpt-4o-2024", "aclaude-1", "gpt-4oo", "", "claude"])
def test_another_name_means_nothing(name: str) -> None:
    assert find(name) is None


def test_a_model_without_rules_is_not_in_the_catalog() -> None:
    assert find("large") is None


def test_a_served_model_goes_before_a_pattern() -> None:
    assert find("claude-local") is None


def test_an_alias_goes_before_a_served_model_of_its_name() -> None:
    named = CATALOG.find("gpt-4o", lambda name: True)
    assert named is not None
    assert named.model == "large"
    assert CATALOG.hides("gpt-4o")
    assert not CATALOG.hides("large")


@pytest.mark.parametrize(
    ("patterns", "name", "model"),
    [
        ('a: {aliases: ["x*"]}, b: {aliases: ["xyz*"]}', "xyz1", "b"),
        ('a: {aliases: ["xyz*"]}, b: {aliases: ["x*"]}', "xyz1", "a"),
        ('a: {aliases: ["x*"]}, b: {aliases: ["*1"]}', "x1", "a"),
        ('a: {aliases: ["*1"]}, b: {aliases: ["x*"]}', "x1", "a"),
        ('a: {aliases: ["*"]}, b: {aliases: ["x1"]}', "x1", "b"),
    ],
)
def test_the_pattern_with_most_text_wins_and_among_equals_the_first(patterns: str, name: str, model: str) -> None:
    named = find(name, catalog_of(f"models: {{{patterns}}}"))
    assert named is not None
    assert named.model == model


@pytest.mark.parametrize(
    ("name", "permitting"),
    [
        ("large", ("large",)),
        ("gpt-4o", ("gpt-4o", "large")),
        ("claude-opus-5", ("claude-opus-5", "claude-*", "large")),
        ("large-think", ("large-think",)),
        ("o3", ("o3", "large-think")),
        ("unknown", ("unknown",)),
    ],
)
def test_a_key_may_use_the_aliases_of_its_models(name: str, permitting: tuple[str, ...]) -> None:
    assert CATALOG.permitting_names(name, SERVED.__contains__) == permitting


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a*", "xax", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "acb", False),
        ("a*bc*c", "abc", False),
        ("a*bc*c", "abcc", True),
        ("a**c", "ac", True),
        ("a.*", "abc", False),
        ("[a]*", "a", False),
        ("*a" * 50, "a" * 100_000, True),
        ("*a" * 50 + "b", "a" * 100_000, False),
    ],
)
def test_each_star_stands_for_any_text(pattern: str, name: str, matches: bool) -> None:
    catalog = catalog_of(f"models: {{m: {{aliases: ['{pattern}']}}}}")
    assert (find(name, catalog) is not None) is matches


def test_patterns_and_hidden_aliases_are_not_listed() -> None:
    assert [name for name, _ in CATALOG.listed()] == ["gpt-4o", "large-think", "o3", "large-think-briefly"]


def test_the_default_model_is_found_by_its_name() -> None:
    assert (CATALOG.default_name, CATALOG.default_model) == ("small", "small")
    by_alias = catalog_of("default_model: x\nmodels: {a: {aliases: [x]}}")
    assert (by_alias.default_name, by_alias.default_model) == ("x", "a")


def test_an_empty_catalog_changes_nothing() -> None:
    assert EMPTY.is_empty
    assert catalog_of("models: {a: {}, b: {parameters: {}}}").is_empty
    assert not catalog_of("default_model: a\nmodels: {a: {}}").is_empty
