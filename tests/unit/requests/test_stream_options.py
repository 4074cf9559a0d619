"""Asking for the usage of a stream changes one member of the request, and no byte of the others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.stream_options import asking_for_usage

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("body", "asking"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b' {\n "n": 1.50e+1\n} \r\n', b' {\n "n": 1.50e+1\n,"stream_options":{"include_usage":true}} \r\n'),
        (b'{"a":"}\\u00e9\xc3\xa9"}', b'{"a":"}\\u00e9\xc3\xa9","stream_options":{"include_usage":true}}'),
        (b'{"id":18446744073709551616}', b'{"id":18446744073709551616,"stream_options":{"include_usage":true}}'),
    ],
)
def test_the_option_is_appended_and_every_other_byte_stays(body: bytes, asking: bytes) -> None:
    assert asking_for_usage(body) == asking


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("null", {"include_usage": True}),
        ("{}", {"include_usage": True}),
        ('{"include_usage": false}', {"include_usage": True}),
        ('{"include_usage": null}', {"include_usage": True}),
        ('{"include_obfuscation": false}', {"include_obfuscation": False, "include_usage": True}),
        # vLLM would send usage with every event.
        ('{"continuous_usage_stats": true}', {"include_usage": True}),
    ],
)
def test_other_options_of_the_client_stay(options: str, asked: dict[str, bool]) -> None:
    asking = asking_for_usage(f'{{"stream_options": {options}, "stream": true}}'.encode())
    assert asking is not None
    assert json.loads(asking) == {"stream": True, "stream_options": asked}


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream_options": {"include_usage": true}}',
        b'{"stream_options": {"continuous_usage_stats": true, "include_usage": true}}',
        b'{"stream_options": "usage"}',
        b'{"stream_options": [1]}',
        b"[]",
        b"{",
        b"",
        b"--x\r\n",
        b'\xef\xbb\xbf{"stream":true}',
    ],
)
def test_a_body_that_asks_already_or_that_engines_reject_is_left_alone(body: bytes) -> None:
    assert asking_for_usage(body) is None


@given(members=st.dictionaries(st.text(), JSON_VALUES, max_size=5), indent=st.none() | st.integers(0, 3))
def test_only_the_option_differs_after_parsing(members: dict[str, object], indent: int | None) -> None:
    members.pop("stream_options", None)
    body = json.dumps(members, indent=indent).encode()
    asking = asking_for_usage(body)
    assert asking is not None
    assert json.loads(asking) == {**members, "stream_options": {"include_usage": True}}
    assert asking.startswith(body[:-1])
