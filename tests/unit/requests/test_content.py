"""What a request says besides its headers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.content import (
    RequestContent,
    all_members,
    read_content,
    read_list,
    read_prompt_content,
    read_text,
    role_of,
)

MALFORMED = (b"", b"{", b"[]", b"null", b"not JSON", b'{"model": "\xff"}', b'{"a":' + b"[" * 100_000)


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
)


@pytest.mark.parametrize(
    ("target", "body", "model"),
    [
        (b"/v1/chat/completions", b'{"model": "tiny", "messages": []}', "tiny"),
        (b"/v1/chat/completions", b' \n{"messages": [{"model": "inner"}], "model": "outer"}', "outer"),
        (b"/v1/chat/completions", b'{"messages": []}', None),
        (b"/v1/chat/completions", b'{"model": null}', None),
        (b"/v1/chat/completions", b'{"model": 7}', None),
        (b"/v1/chat/completions", b'{"model": "tiny"', None),
        (b"/v1/chat/completions", b'{"model": "\xff"}', None),
        (b"/v1/chat/completions", b"[]", None),
        pytest.param(b"/v1/chat/completions", b'{"a":' + b"[" * 100_000, None, id="nested too deeply"),
        (b"/v1/chat/completions", b"", None),
        (b"/v1/audio/transcriptions", FORM, "whisper-1"),
        (b"/v1/audio/transcriptions", FORM[:-60].replace(b"RIFF", b"R" * 3_000_000) + FORM[-60:], "whisper-1"),
        (b"/v1/audio/transcriptions", b"--x\r\n\r\n--x--\r\n", None),
        (b"/props?autoload=false&model=a%2Fb", b"", "a/b"),
        (b"/props?model=", b"", None),
        (b"/props?no", b"", None),
    ],
)
def test_the_model_is_found_in_json_forms_and_queries(target: bytes, body: bytes, model: str | None) -> None:
    assert read_content(target, body).model == model


def members(**given: Any) -> bytes:
    return json.dumps(given).encode()


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:12]))
def test_a_malformed_body_has_no_content(body: bytes) -> None:
    assert read_content(b"/", body) == RequestContent()
    assert read_prompt_content(body) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}{}", b'{"\xff": 1}', b'{"a":' + b"[" * 100_000])
def test_only_a_json_object_has_named_members(body: bytes) -> None:
    assert all_members(body) is None


def test_a_body_without_members_has_defaults() -> None:
    found = read_content(b"/", b"{}")

    assert (found.model, found.is_streamed, found.answer_tokens, found.previous_response_id) == (
        None,
        False,
        None,
        None,
    )


def test_both_depths_find_the_same_members() -> None:
    body = members(model="m", stream=True, max_tokens=7, previous_response_id="resp_1", messages=[{"role": "user"}])

    for found in (read_content(b"/", body), read_prompt_content(body)):
        assert found is not None
        assert (found.model, found.is_streamed, found.answer_tokens) == ("m", True, 7)
        assert found.previous_response_id == "resp_1"


@pytest.mark.parametrize("invalid", [[], {}, [1], {"a": 1}, "x", 1.5, True, None, -1])
def test_an_invalid_member_hides_no_other_member(invalid: object) -> None:
    found = read_content(b"/", members(model="m", max_tokens=invalid, n_predict=9))
    assert (found.model, found.answer_tokens) == ("m", 9)

    found = read_content(b"/", members(model="m", stream=invalid, previous_response_id="resp_1"))
    assert (found.is_streamed, found.previous_response_id) == (invalid is True, "resp_1")


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6, "max_output_tokens": 7, "n_predict": 8}, 6),
        ({"max_tokens": 5, "max_output_tokens": 7, "n_predict": 8}, 7),
        ({"max_tokens": 5, "n_predict": 8}, 5),
        ({"n_predict": 8}, 8),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 10**400}, 10**400),
    ],
)
def test_the_first_valid_limit_by_precedence_counts(given: dict[str, int], tokens: int | None) -> None:
    assert read_content(b"/", members(**given)).answer_tokens == tokens


@pytest.mark.parametrize(
    ("message", "role"),
    [('{"content": "q", "role": "user"}', "user"), ('{"role": 1}', None), ("{}", None)],
)
def test_a_message_has_a_role_if_it_is_a_string(message: str, role: str | None) -> None:
    assert role_of(msgspec.Raw(message.encode())) == role


@pytest.mark.parametrize("message", ["1", '"user"', "[]", '{"role": []}'])
def test_a_value_that_is_no_message_has_no_role(message: str) -> None:
    with pytest.raises(ValueError, match="not a chat message"):
        role_of(msgspec.Raw(message.encode()))


def test_a_list_has_raw_items() -> None:
    assert [bytes(memoryview(item)) for item in read_list(msgspec.Raw(b'[1, {"a": 2}]'))] == [b"1", b'{"a": 2}']


def test_of_equal_names_the_last_member_counts() -> None:
    found = all_members(b' \n{"model": "first", "model": "last"}\t')

    assert found is not None
    assert read_text(found["model"]) == "last"
    assert read_text(msgspec.Raw(b"7")) is None


@given(st.binary(max_size=200))
def test_no_body_raises(body: bytes) -> None:
    for start in (b"", b"{", b"--", b'{"stream":', b'{"max_tokens":'):
        found = read_content(b"/", start + body)
        assert found.is_streamed in (True, False)
        assert found.answer_tokens is None or found.answer_tokens >= 0
