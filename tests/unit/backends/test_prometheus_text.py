from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from inference_engine_proxy_server.backends.prometheus_text import Sample, samples, sum_samples

PARSED = {
    "no labels": (b"load 3\n", 3.0),
    "labels": (b'load{engine="0"} 3\n', 3.0),
    "empty labels": (b"load{} 3\n", 3.0),
    "no blank before the value": (b'load{engine="0"}3\n', 3.0),
    "blanks and tabs": (b' \tload \t{engine="0"} \t3 \t\n', 3.0),
    "last line without a line feed": (b"# a page\nload 3", 3.0),
    "carriage return": (b"load 3\r\nload 4\r\n", 7.0),
    "timestamp": (b"load 3 1395066363000\n", 3.0),
    "negative timestamp": (b"load 3 -1\n", 3.0),
    "exemplar": (b'load{le="1"} 3 # {trace_id="{"} 0.67 1.5\n', 3.0),
    "exponent": (b"load 1.79e+2\n", 179.0),
    "infinity": (b"load +Inf\n", math.inf),
    "negative infinity": (b"load -Inf\n", -math.inf),
    "sum over label sets": (b'load{engine="0"} 3\nother 9\nload{engine="1"} 4\n', 7.0),
    "brace and quote in a label": (b'load{path="a}\\" 5",x="\\\\"} 3\n', 3.0),
    "name in a label": (b'other{of="load 9"} 9\nload 3\n', 3.0),
    "help and type": (b"# HELP load load 5\n# TYPE load gauge\nload 3\n", 3.0),
}
SKIPPED = {
    "longer name": b'load_by_reason{reason="a"} 3\n',
    "longer name without labels": b"load5 3\n",
    "name with a colon": b"load:rate 3\n",
    "name that ends in it": b"over_load 3\nmy:load 3\n",
    "comment": b"#load 3\n# load 3\n",
    "no value": b"load\n",
    "blank value": b"load \n",
    "labels only": b'load{engine="0"}\n',
    "word as value": b"load three\n",
    "number that only Python reads": b"load 1_000\n",
    "open brace": b'load{engine="0" 3\n',
    "open quote": b'load{engine="0} 3\n',
    "no opening brace": b'load engine="0"} 3\n',
    "word after the value": b"load 3 times\n",
    "two timestamps": b"load 3 4 5\n",
    "nul": b"load 3\x00\n",
    "not UTF-8": b"load \xff\xfe\n",
    "empty": b"",
}


@pytest.mark.parametrize(("page", "total"), PARSED.values(), ids=PARSED.keys())
def test_well_formed_lines_are_summed(page: bytes, total: float) -> None:
    assert sum_samples(page, ["load"]) == {"load": total}


@pytest.mark.parametrize("page", SKIPPED.values(), ids=SKIPPED.keys())
def test_other_names_and_malformed_lines_are_skipped(page: bytes) -> None:
    assert sum_samples(page, ["load"]) == {}
    assert sum_samples(b"load 1\n" + page + b"\nload 2\n", ["load"]) == {"load": 3.0}


def test_nan_is_kept() -> None:
    assert math.isnan(sum_samples(b"load 1\nload NaN\n", ["load"])["load"])


def test_labels_are_kept_as_written() -> None:
    page = b'state{name="awake"} 1\nstate 0\n'
    assert list(samples(page, "state")) == [Sample(b'{name="awake"}', 1.0), Sample(b"", 0.0)]


def test_each_name_has_its_own_sum() -> None:
    assert sum_samples(b"a 1\nb 2\na 3\n", ["a", "b", "c"]) == {"a": 4.0, "b": 2.0}


# Names that contain one another, as in real pages.
_names = st.sampled_from(["load", "load_by_reason", "over_load", "l", "my:load", "load1"])
_label_values = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_labels = st.dictionaries(st.sampled_from(["engine", "load", "le"]), _label_values, max_size=3)
_values = st.one_of(
    st.floats(width=32).map(repr), st.integers(-1000, 1000).map(str), st.sampled_from(["NaN", "+Inf", "-Inf", "1E5"])
)
_blanks = st.text(" \t", min_size=1, max_size=2)
_comments = st.sampled_from(["", "# load 7", "# HELP load of it: load 7", "# EOF", "  "])


@st.composite
def _lines(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        return draw(_comments)
    labels = ",".join(f'{name}="{_escape(value)}"' for name, value in draw(_labels).items())
    braces = f"{{{labels}}}" if labels or draw(st.booleans()) else ""
    timestamp = draw(st.one_of(st.just(""), st.integers(0, 2**42).map(lambda number: f" {number}")))
    return f"{draw(_names)}{braces}{draw(_blanks)}{draw(_values)}{timestamp}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@given(st.lists(_lines(), max_size=12))
def test_results_agree_with_the_official_parser(lines: list[str]) -> None:
    page = "\n".join(lines) + "\n"
    expected: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            expected[sample.name] += sample.value
    sums = sum_samples(page.encode(), ["load", "load_by_reason", "over_load", "l", "my:load", "load1"])
    assert sums == pytest.approx(dict(expected), nan_ok=True)


@given(st.binary(max_size=200))
def test_no_page_raises(junk: bytes) -> None:
    sum_samples(b"load" + junk + b"\nload 1\n", ["load", "l"])
