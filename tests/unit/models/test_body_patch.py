"""A patched body means what the rules say, and has all other bytes as the client sent them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.config.parameters import ParameterPath
from inference_engine_proxy_server.models.body_patch import BodyPatch, applied
from inference_engine_proxy_server.models.rules import Kind, Rule
from inference_engine_proxy_server.requests.body_spans import body_spans
from inference_engine_proxy_server.requests.content import all_members

NAMES = ("a", "b", "c", "é", 'q"')
BLANKS = st.sampled_from(["", "", " ", "\n\t", "\r\n  "])
SCALARS = st.sampled_from(
    [
        "null", "true", "0", "-0", "1.0", "1.50e+05", "0.1000000000000000055511151231257827", "1e400",
        "123456789012345678901234567890", '""', '"a\\u0041\\/\\ud83d\\ude00"', '"}, \\"a\\": 1"', '"\\\\"', '"é"',
    ]
)  # fmt: skip
RULE_VALUES = st.sampled_from([b"1", b'"x"', b"[1,{}]", b"{}", b"0.25"])


def written(name: str, *, escaped: bool) -> str:
    return '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"' if escaped else json.dumps(name)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    blank = draw(BLANKS)
    return f"[{blank}{(blank + ',').join(draw(st.lists(inner, max_size=3)))}{blank}]"


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str], *, repeats: bool) -> str:
    names = draw(st.lists(st.sampled_from(NAMES), max_size=5, unique=not repeats))
    members = [
        f"{draw(BLANKS)}{written(name, escaped=draw(st.booleans()))}{draw(BLANKS)}:{draw(BLANKS)}{draw(inner)}"
        for name in names
    ]
    separator = draw(BLANKS) + ","
    return f"{{{draw(BLANKS)}{separator.join(members)}{draw(BLANKS)}}}"


def values(*, repeats: bool) -> st.SearchStrategy[str]:
    return st.recursive(SCALARS, lambda inner: arrays(inner) | objects(inner, repeats=repeats), max_leaves=8)


@st.composite
def bodies(draw: st.DrawFn, *, repeats: bool = False) -> bytes:
    mark = draw(st.sampled_from(["", "", "\ufeff"]))
    return f"{mark}{draw(BLANKS)}{draw(objects(values(repeats=repeats), repeats=repeats))}{draw(BLANKS)}".encode()


@st.composite
def rules(draw: st.DrawFn) -> dict[ParameterPath, Rule]:
    """Rules of which none contradicts another, as the fleet file guarantees."""
    paths = draw(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple), max_size=5, unique=True))
    found: dict[ParameterPath, Rule] = {}
    for path in sorted(paths, key=len):
        kind = draw(st.sampled_from(list(Kind)))
        above = [rule for other, rule in found.items() if path[: len(other)] == other]
        if all(rule.kind is Kind.REMOVE for rule in above):
            found[path] = Rule(kind, b"" if kind is Kind.REMOVE else draw(RULE_VALUES))
    return found


def read(body: bytes) -> Any:
    """The body as engines read it, with numbers as they are written."""
    return json.loads(body.decode("utf-8-sig"), parse_float=str, parse_int=str)


def meant(rules: Mapping[ParameterPath, Rule], given: Any) -> Any:
    """What the rules say, on Python's objects: first remove, then set, then add what is missing."""
    result = copy.deepcopy(given)
    for kind in (Kind.REMOVE, Kind.SET, Kind.DEFAULT):
        for path, rule in rules.items():
            if rule.kind is kind:
                follow(result, path, rule)
    return result


def follow(result: Any, path: ParameterPath, rule: Rule) -> None:
    *outer, last = path
    for name in outer:
        if rule.kind is Kind.REMOVE and not isinstance(result.get(name), dict):
            return
        if rule.kind is Kind.SET and not isinstance(result.get(name), dict):
            result[name] = {}
        if result.get(name) is None:
            result[name] = {}
        if not isinstance(result[name], dict):
            return
        result = result[name]
    if rule.kind is Kind.REMOVE:
        result.pop(last, None)
    elif rule.kind is Kind.SET or result.get(last) is None:
        result[last] = json.loads(rule.value, parse_float=str, parse_int=str)


def patched(rules: Mapping[ParameterPath, Rule], body: bytes) -> bytes:
    patch, members, spans = BodyPatch(rules), all_members(body), body_spans(body)
    assert spans is not None
    whole = patch.with_new_members(body, members) if members else None
    return applied(body, patch.edits(body, spans)) if whole is None else whole


def raw_members(body: bytes) -> dict[str, bytes]:
    found = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf").strip(), type=dict[str, msgspec.Raw])
    return {name: bytes(raw) for name, raw in found.items()}


def assert_same_bytes(rules: Mapping[ParameterPath, Rule], before: bytes, after: bytes) -> None:
    """All members that no rule is about have their old bytes, in their old order."""
    old, new = raw_members(before), raw_members(after)
    about = {path[0] for path in rules}
    assert [name for name in new if name not in about] == [name for name in old if name not in about]
    for name, value in old.items():
        inner = {path[1:]: rule for path, rule in rules.items() if path[0] == name and len(path) > 1}
        if name not in about:
            assert new[name] == value
        elif (name,) not in rules and value.startswith(b"{"):
            assert_same_bytes(inner, value, new[name])


@given(rules(), bodies())
def test_a_patched_body_means_what_the_rules_say_and_keeps_all_other_bytes(
    rules: dict[ParameterPath, Rule], body: bytes
) -> None:
    after = patched(rules, body)

    assert read(after) == meant(rules, read(body))
    assert_same_bytes(rules, body, after)
    if read(after) == read(body):
        assert after == body
    assert patched(rules, after) == after


@given(rules(), bodies(repeats=True))
def test_repeated_names_mean_what_the_rules_say(rules: dict[ParameterPath, Rule], body: bytes) -> None:
    assert read(patched(rules, body)) == meant(rules, read(body))


def rule(kind: Kind, value: bytes = b"") -> Rule:
    return Rule(kind, value)


SET, DEFAULT, REMOVE = rule(Kind.SET, b"1"), rule(Kind.DEFAULT, b"2"), rule(Kind.REMOVE)


@pytest.mark.parametrize(
    ("rules", "before", "after"),
    [
        ({("a",): SET}, b"{}", b'{"a":1}'),
        ({("a",): SET}, b'{ "b" : 5 }', b'{ "b" : 5 ,"a":1}'),
        ({("a",): SET}, b'{"a": [1, 2] , "b": 5}', b'{"a": 1 , "b": 5}'),
        ({("a",): SET}, b'{"a": 3, "b": 5, "a": 4}', b'{"a": 1, "b": 5, "a": 1}'),
        ({("a",): DEFAULT}, b'{"a": 0}', b'{"a": 0}'),
        ({("a",): DEFAULT}, b'{"a": null}', b'{"a": 2}'),
        ({("a",): REMOVE}, b'{"a": 1}', b"{}"),
        ({("a",): REMOVE}, b'{"a": 1, "b": 2}', b'{"b": 2}'),
        ({("a",): REMOVE}, b'{"b": 2, "a": 1 }', b'{"b": 2 }'),
        ({("a",): REMOVE, ("b",): REMOVE}, b'{"a":1,"c":3,"b":2,"a":4}', b'{"c":3}'),
        ({("a",): REMOVE, ("b",): REMOVE}, b'{"a":1, "b":2, "c":3}', b'{"c":3}'),
        ({("a",): REMOVE, ("b",): SET}, b'{"a":1}', b'{"b":1}'),
        ({("a", "b"): SET}, b'{"a":{"c": 1.0}}', b'{"a":{"c": 1.0,"b":1}}'),
        ({("a", "b"): SET}, b'{"a":7}', b'{"a":{"b":1}}'),
        ({("a", "b"): SET}, b"{}", b'{"a":{"b":1}}'),
        ({("a", "b"): DEFAULT}, b'{"a":7}', b'{"a":7}'),
        ({("a", "b"): DEFAULT}, b'{"a":null}', b'{"a":{"b":2}}'),
        ({("a", "b"): REMOVE}, b'{"a":{"b":1}}', b'{"a":{}}'),
        ({("a", "b"): REMOVE}, b'{"a":null}', b'{"a":null}'),
        ({("a",): REMOVE, ("a", "b"): SET}, b'{"a":{"c":3}}', b'{"a":{"b":1}}'),
        ({("a",): SET}, b'{"b":NaN}', b'{"b":NaN,"a":1}'),
        ({("a",): SET}, b'\xef\xbb\xbf{"b":"\\ud800"}', b'\xef\xbb\xbf{"b":"\\ud800","a":1}'),
    ],
)
def test_only_the_named_members_change(rules: dict[ParameterPath, Rule], before: bytes, after: bytes) -> None:
    assert patched(rules, before) == after


def test_a_value_that_looks_like_members_is_not_mistaken_for_them() -> None:
    """Where the values of a repeated name are compared by length only, the inner "b" seems to be the outer one."""
    body = b'{"a":1,"b":22222,"a":[{"q":0,      "b":333}]}'
    assert patched({("b",): SET}, body) == body.replace(b"22222", b"1")


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"a":1', b'{"a":1,}', b'{"a" 1}', b"{a:1}"])
def test_a_body_that_is_no_object_has_no_members(body: bytes) -> None:
    assert body_spans(body) is None


def test_a_deeply_nested_body_is_read() -> None:
    body = b'{"deep":' + b"[" * 5000 + b"]" * 5000 + b',"a":7}'
    assert patched({("a",): SET}, body) == body.replace(b'"a":7', b'"a":1')


def names_of(body: bytes) -> Sequence[str]:
    return [span.name for span in body_spans(body) or ()]


def test_names_with_escapes_are_found() -> None:
    assert names_of(b'{"\\u0061": 1, "b": 2}') == ["a", "b"]
