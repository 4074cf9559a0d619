"""The content of a request's target and body."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.content import (
    RequestContent,
    all_members,
    model_problem,
    read_content,
    read_content_with_prompt,
    read_list,
    read_text,
    role_of,
)

MALFORMED = (b"", b"{", b"[]", b"null", b"not JSON", b'{"model": "\xff"}', b'{"a":' + b"[" * 100_000)


@pytest.mark.parametrize(
    ("target", "body", "model"),
    [
        (b"/v1/chat/completions", b'{"model": "tiny", "messages": []}', "tiny"),
        (b"/v1/chat/completions", b' \n{"messages": [{"model": "inner"}], "model": "outer"}', "outer"),
        (b"/v1/chat/completions", b'{"messages": []}', None),
        (b"/v1/chat/completions", b'{"model": null}', None),
        (b"/v1/chat/completions", b'{"model": ""}', None),
        (b"/v1/chat/completions", b'{"model": 7}', None),
        (b"/v1/chat/completions", b'{"model": "tiny"', None),
        (b"/v1/chat/completions", b'{"model": "\xff"}', None),
        (b"/v1/chat/completions", b"[]", None),
        pytest.param(b"/v1/chat/completions", b'{"a":' + b"[" * 100_000, None, id="nested too deeply"),
        (b"/v1/chat/completions", b"", None),
        (b"/v1/audio/transcriptions", b"--x\r\n\r\n--x--\r\n", None),
        (b"/props?autoload=false&model=a%2Fb", b"", "a/b"),
        (b"/props?%6dodel=a", b"", "a"),
        (b"/props?model=", b"", None),
        (b"/props?no", b"", None),
        (b"/tokenize?model=a", b'{"content": "x"}', "a"),
    ],
)
def test_the_model_is_found_in_json_and_queries(target: bytes, body: bytes, model: str | None) -> None:
    assert read_content(target, body).model == model


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'\xef\xbb\xbf{"model": "tiny"}', id="byte-order mark: llama.cpp and vLLM"),
        pytest.param('{"model": "tiny"}'.encode("utf-16"), id="UTF-16: vLLM"),
        pytest.param('{"model": "tiny"}'.encode("utf-16-be"), id="UTF-16 without a mark: vLLM"),
        pytest.param('{"model": "tiny"}'.encode("utf-32"), id="UTF-32: vLLM"),
        pytest.param(b'{"prompt": "\\ud83d", "model": "tiny"}', id="lone surrogate: vLLM"),
        pytest.param(b'{"prompt": "\xed\xa0\xbd", "model": "tiny"}', id="lone surrogate in UTF-8: vLLM"),
        pytest.param(b'{"\\ud83d": [], "model": "tiny"}', id="lone surrogate in a name"),
        pytest.param(b'{"top_p": NaN, "min_p": -Infinity, "model": "tiny"}', id="NaN: vLLM"),
        pytest.param(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b', "model": "tiny"}', id="deep nesting: llama.cpp"),
        pytest.param(b'{"model": "a", "x": "\\ud83d", "model": "tiny"}', id="twice: the last counts"),
        pytest.param(b'{"x": {"model": "a", "y": "\\ud83d"}, "model": "tiny"}', id="inside another member"),
        pytest.param(b'{"stream": {"x": NaN}, "model": "tiny"}', id="invalid member"),
        pytest.param(b'{"model": "t\\u0069ny", "x": NaN}', id="escape"),
        pytest.param(b'{"Model": "tiny"}', id="another case: Go"),
    ],
)
def test_model_that_only_some_engines_can_read_is_found(body: bytes) -> None:
    assert read_content(b"/v1/chat/completions", body).model == "tiny"


def test_strict_and_tolerant_readings_find_the_same_members() -> None:
    body = b'{"model": "m", "stream": true, "max_tokens": 7, "previous_response_id": "resp_1", "input": "\\ud83d"}'
    found = read_content(b"/v1/responses", body)
    assert (found.model, found.is_streamed, found.answer_tokens) == ("m", True, 7)
    assert found.previous_response_id == "resp_1"


FORM_TYPE = b"Host: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"R" * 2_000_000 + b"\r\n"
MODEL = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
END = b"--x--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(MODEL + END, id="alone"),
        pytest.param(FILE + MODEL + END, id="after a large file"),
        pytest.param(FILE + MODEL + FILE + END, id="between two large files"),
        pytest.param(b"This is a form.\r\n" + MODEL + END, id="text before the first boundary"),
        pytest.param(b"\r\n" + MODEL + END, id="blank line before the first boundary"),
        pytest.param(MODEL.replace(b'"model"', b"model") + END, id="no quotes: .NET"),
        pytest.param(MODEL.replace(b'name="', b'charset=utf-8; name="') + END, id="another parameter first"),
        pytest.param(MODEL.replace(b'name="model"', b"name*=utf-8''model") + END, id="extended notation"),
        pytest.param(MODEL.replace(b"Disposition: ", b"disposition:") + END, id="no blank"),
        pytest.param(MODEL.replace(b"--x\r\n", b"--x  \r\n") + END, id="blanks after the boundary"),
        pytest.param(
            MODEL.replace(b"--x\r\n", b"--x\r\nContent-Type: text/plain; charset=utf-8\r\n") + END, id="type first"
        ),
        pytest.param(FILE.replace(b"RRR\r\n", b"\r\n--xyz\r\n") + MODEL + END, id="longer boundary in a file"),
        pytest.param(MODEL + MODEL + END, id="twice the same"),
    ],
)
def test_model_of_a_form_is_found(body: bytes) -> None:
    assert read_content(b"/v1/audio/transcriptions", body, FORM_TYPE).model == "whisper-1"


@pytest.mark.parametrize("boundary", [b'"x"', b"x; charset=utf-8", b" x"])
def test_boundary_of_a_form_may_be_quoted(boundary: bytes) -> None:
    head = b"content-type: Multipart/Form-Data; Boundary=%b\r\n" % boundary
    assert read_content(b"/v1/audio/transcriptions", MODEL + END, head).model == "whisper-1"


def test_model_of_an_encoded_form_is_found() -> None:
    head = b"Content-Type: application/x-www-form-urlencoded\r\n"
    assert read_content(b"/x", b"prompt=a&model=b%2Fc", head).model == "b/c"


JSON_TYPE = b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("header_lines", "body", "status"),
    [
        (JSON_TYPE, b'{"model": 7}', 400),
        (JSON_TYPE, b'{"model": ["a"]}', 400),
        (JSON_TYPE, b'{"model": "a"', 400),
        (JSON_TYPE, b'[{"model": "a"}]', 400),
        (b"", b"model=a", 400),
        (b"Content-Type: audio/wav\r\n", b"RIFF", 415),
        (JSON_TYPE + b"Content-Encoding: gzip\r\n", b"\x1f\x8b", 415),
        (FORM_TYPE, MODEL.replace(b"--x", b"--y") + b"--y--\r\n", 400),
        (b"Content-Type: multipart/form-data\r\n", MODEL + END, 400),
        (FORM_TYPE, MODEL + MODEL.replace(b"whisper-1", b"other") + END, 400),
        (JSON_TYPE, b"{}", None),
        (JSON_TYPE, b'{"model": null}', None),
        (JSON_TYPE, b'{"model": ""}', None),
        (JSON_TYPE, b'{"messages": "\\ud83d"}', None),
        (FORM_TYPE, FILE + END, None),
    ],
)
def test_problem_with_a_model_explains_why_it_cannot_be_read(
    header_lines: bytes, body: bytes, status: int | None
) -> None:
    assert read_content(b"/", body, header_lines).model is None
    problem = model_problem(header_lines, body)
    assert (None if problem is None else (problem.status, problem.code)) == (status and (status, "unreadable_model"))


def test_hostile_json_takes_bounded_time() -> None:
    began = time.process_time()
    for body in (b'{"a":' + b"[" * 5_000_000, b"{" + b'"a":1,' * 1_000_000, b'{"a":[' + b'"",' * 2_000_000):
        assert read_content(b"/", body).model is None
    assert time.process_time() - began < 5


def members(**given: Any) -> bytes:
    return json.dumps(given).encode()


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:12]))
def test_a_malformed_body_has_no_content(body: bytes) -> None:
    assert read_content(b"/", body) == RequestContent()
    assert read_content_with_prompt(b"/", body) == RequestContent()


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

    for found in (read_content(b"/", body), read_content_with_prompt(b"/", body)):
        assert (found.model, found.is_streamed, found.answer_tokens) == ("m", True, 7)
        assert found.previous_response_id == "resp_1"


@pytest.mark.parametrize("read", [read_content, read_content_with_prompt])
@pytest.mark.parametrize(
    ("body", "model"),
    [
        (members(messages=[]), "q"),
        (members(model="", messages=[]), "q"),
        (members(model="m", messages="hi"), "m"),  # an engine rejects this, but the model is known
        (members(Model="m"), "m"),
        (b"", "q"),
    ],
)
def test_both_depths_find_the_model_wherever_it_is(
    read: Callable[[bytes, bytes], RequestContent], body: bytes, model: str
) -> None:
    assert read(b"/v1/chat/completions?model=q", body).model == model


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
