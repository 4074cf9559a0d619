"""Prompts: size, hashes of their beginnings, sessions, and keys."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.content import read_content
from inference_engine_proxy_server.requests.prompt import ENDS, Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes

CHAT = "/v1/chat/completions"


def read(body: bytes | dict[str, Any], path: str = CHAT, fields: bytes = b"") -> Prompt:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_prompt(path.encode(), path, fields, content, TokenSizes())


def chat(*contents: str, **members: object) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    return {"model": "tiny", "messages": messages, **members}


def shared(one: Prompt, other: Prompt) -> int:
    """Bytes of the whole blocks that both begin with, by their chains."""
    same = 0
    for mine, theirs, end in zip(one.chain, other.chain, ENDS, strict=False):
        if mine != theirs:
            break
        same = end
    return same


# --- blocks


def test_block_sizes_grow_with_their_offset() -> None:
    sizes = [end - start for start, end in zip((0, *ENDS), ENDS, strict=False)]
    assert sizes[:17] == [512] * 16 + [1024]
    assert all(size == 512 or size * 8 <= end for size, end in zip(sizes, ENDS, strict=True))
    assert ENDS[-1] > 2_000_000


@given(st.lists(st.text(max_size=900), min_size=1, max_size=6), st.text(max_size=900))
def test_a_growing_conversation_keeps_all_its_whole_blocks(turns: list[str], more: str) -> None:
    before, after = read(chat(*turns)), read(chat(*turns, more))
    assert list(after.chain[: len(before.chain)]) == list(before.chain)
    assert len(before.chain) == sum(end <= before.size for end in ENDS)


@given(st.text("abc", max_size=3000), st.text("abc", max_size=3000), st.text("abc", max_size=1500))
def test_chains_agree_exactly_as_far_as_the_prompts(start: str, one: str, other: str) -> None:
    first, second = read({"prompt": start + one}), read({"prompt": start + other})
    alike = len(start)
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        alike += 1
    assert shared(first, second) == max(
        (end for end in ENDS if end <= min(1 + alike, first.size, second.size)), default=0
    )


def test_a_prompt_that_ends_at_a_block_boundary_shares_that_block_with_its_continuation() -> None:
    body = chat("x" * (512 - len(json.dumps(chat("")["messages"])) + 2))
    grown = chat(body["messages"][0]["content"], "more")
    assert read(body).size == 512
    assert shared(read(body), read(grown)) == 512


@pytest.mark.parametrize(
    "other",
    [
        chat("a" * 2000, model="small"),
        chat("a" * 2000, tools=[{"type": "function"}]),
        chat("a" * 2000, system="Be kind."),
        chat("a" * 2000, instructions="Be kind."),
        chat("a" * 2000, cache_salt="mine"),
        chat("b" * 2000),
    ],
)
def test_every_part_of_a_prompt_changes_its_chain(other: dict[str, Any]) -> None:
    assert shared(read(chat("a" * 2000)), read(other)) == 0


def test_tools_and_system_precede_the_messages_in_any_member_order() -> None:
    start = {"tools": [{"name": "x" * 600}], "system": "y" * 600}
    one = read({"model": "tiny", "messages": [{"content": "a" * 600}], **start})
    other = read({**start, "model": "tiny", "messages": [{"content": "b" * 600}]})
    assert shared(one, other) == 1024


def test_sampling_parameters_do_not_change_the_chain() -> None:
    one, other = read(chat("a" * 3000, temperature=0)), read(chat("a" * 3000, temperature=1, seed=7))
    assert shared(one, other) == ENDS[len(one.chain) - 1] > 2500


@pytest.mark.parametrize("member", ["prompt", "input"])
@pytest.mark.parametrize("text", ["w" * 3000, ["w" * 1500] * 2, list(range(1000))])
def test_prompts_of_every_kind_have_chains(member: str, text: object) -> None:
    assert len(read({"model": "tiny", member: text}).chain) >= 5


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/embedding", "/tokenize"])
def test_a_prompt_that_engines_never_cache_has_a_size_but_no_chain(path: str) -> None:
    prompt = read({"input": "w" * 3000}, path)
    assert not prompt.chain
    assert prompt.size == 3001


def test_without_a_prompt_the_size_is_that_of_the_body() -> None:
    body = json.dumps({"query": "q", "documents": ["d" * 3000]}).encode()
    assert read(body, "/v1/rerank").size == len(body)


def test_the_chain_of_a_very_long_prompt_has_bounded_length() -> None:
    assert len(read({"prompt": "x" * 3_000_000}).chain) == len(ENDS) == 128


# --- malformed bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000,
        b'{"messages": [' * 5000,
        b'{"messages": ["\xff\xfe"', b"\xff" * 3000,
        b'{"model": ["tiny"], "prompt": "x"}',
        b'{"max_tokens": 1e999}',
        b'{"prompt": "\\ud800' + b"a" * 600 + b'"}',
        b"--x\r\n" + b"a" * 4000,
    ],
)  # fmt: skip
def test_a_malformed_body_has_its_length_and_no_chain(body: bytes) -> None:
    prompt = read(body)
    assert prompt.size == len(body)
    assert prompt.tokens == len(body) / 4
    assert not prompt.chain


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_request_raises(body: bytes, fields: bytes) -> None:
    for start in (b"", b"{", b'{"messages":', b'{"model":"\\ud800","prompt":'):
        read_prompt(b"/v1/x?model=%ff", "/v1/x", fields, start + body, TokenSizes())


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": null}',
        b'{"messages": [], "prompt": ""}',
        b'{"messages": ["' + b"\xc3(" * 400 + b'"]}',
    ],
)
def test_the_content_of_a_prompt_is_not_validated(body: bytes) -> None:
    prompt = read(body)
    assert len(prompt.chain) == (prompt.size >= 512)


# --- other members


@given(
    st.fixed_dictionaries({}, optional={"model": st.one_of(st.none(), st.text(), st.integers()), "prompt": st.text()})
)
def test_the_model_is_the_same_with_and_without_reading_the_prompt(body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    assert read(content).model == read_content(CHAT.encode(), content).model


def test_the_model_is_found_in_forms_queries_and_bodies_with_invalid_members() -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--x--\r\n'
    assert read(form, fields=b"Content-Type: multipart/form-data; boundary=x\r\n").model == "whisper-1"
    assert read(b"", "/props?model=a").model == "a"
    assert read(b'{"model": "tiny", "stream": {}}').model == "tiny"


@pytest.mark.parametrize(
    ("fields", "members", "session"),
    [
        (b"X-Session-Id: a\r\n", {}, "a"),
        (b"Accept: */*\r\nx-claude-code-session-id:  b \r\nHost: x\r\n", {}, "b"),
        (b"X-OpenWebUI-Chat-Id: c\r\n", {"prompt_cache_key": "key"}, "c"),
        (b"session-id: d\r\n", {}, "d"),
        (b"session-id: d\r\nX-Session-Id: a\r\n", {}, "a"),
        (b"X-Not-Session-Id: a\r\nX-Session-Id-Not: b\r\nX-Session-Id:\r\n", {}, None),
        (b"X-Conversation-Id: e\r\n", {}, None),
        (b"", {"prompt_cache_key": "key"}, "key"),
        (b"", {"prompt_cache_key": 7}, None),
        (b"", {}, None),
    ],
)
def test_the_session_comes_from_the_headers_or_the_cache_key(
    fields: bytes, members: dict[str, Any], session: str | None
) -> None:
    assert read(chat("hi", **members), fields=fields).session == session


def test_only_valid_answer_limits_and_stream_flags_count() -> None:
    assert read(chat("hi", max_tokens=7)).answer_tokens == 7
    assert read(chat("hi", max_tokens=7, max_completion_tokens=0)).answer_tokens == 0
    assert read(chat("hi", max_tokens=True, n_predict=-1)).answer_tokens is None
    assert read(chat("hi", stream=True)).is_streamed
    assert not read(chat("hi", stream=1)).is_streamed


BASE64 = "iVBORw0K" * 50_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{BASE64}"}},
    ],
    ids=lambda part: part["type"],
)
def test_a_picture_sound_or_document_counts_as_a_fixed_number_of_tokens(part: dict[str, Any]) -> None:
    text = "word " * 2000
    prompt = read({"messages": [{"role": "user", "content": [{"type": "text", "text": text}, part, part]}]})
    assert prompt.size > 800_000
    assert not prompt.is_plain
    assert prompt.tokens == pytest.approx(2500 + 2000, rel=0.05)


@pytest.mark.parametrize("before", range(0, 90_000, 7_000))
def test_a_file_of_an_eighth_of_the_text_is_found_wherever_it_is(before: int) -> None:
    text, file = "word, " * 15_000, "data:image/png;base64," + BASE64[:13_000]
    assert not read(chat(f"{text[:before]}{file}' {text[before:]}")).is_plain


def test_text_and_members_that_only_look_like_files_count_by_their_length() -> None:
    assert read(chat("word " * 20_000)).tokens == pytest.approx(25_000, rel=0.05)
    assert read(chat("a" * 100_000 + '{"data": "a b"} "data": "')).tokens == pytest.approx(25_000, rel=0.05)


def test_the_tokens_of_an_uploaded_file_do_not_depend_on_its_length() -> None:
    fields = b"Content-Type: multipart/form-data; boundary=b\r\n"
    upload = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n%b\r\n--b--\r\n'
    short, long = (read(upload % bytes(size), "/v1/audio/transcriptions", fields=fields) for size in (9, 9_000_000))
    assert short.tokens == long.tokens == 1000


@pytest.mark.parametrize(
    ("body", "path", "is_one_text"),
    [
        (chat("hi"), CHAT, True),
        ({"prompt": "hi"}, "/v1/completions", True),
        ({"input": "hi"}, "/v1/responses", True),
        ({"prompt": ["one", "other"]}, "/v1/completions", False),
        ({"input": ["one", "other"]}, "/v1/embeddings", False),
        ({"query": "one", "documents": ["other"]}, "/v1/rerank", False),
        ({}, CHAT, False),
        (b"--boundary\r\n", "/v1/audio/transcriptions", False),
    ],
)
def test_a_list_of_independent_texts_is_not_one_text(body: Any, path: str, is_one_text: bool) -> None:
    assert read(body, path).is_one_text is is_one_text


# --- keys


def test_the_placement_key_comes_from_the_session_else_from_the_beginning() -> None:
    one, other = chat("a" * 600 + "b"), chat("a" * 600 + "c")
    assert read(one).placement_key == read(other).placement_key
    assert read(one).placement_key != read(chat("b" * 600)).placement_key
    with_session = b"X-Session-Id: a\r\n"
    assert read(one, fields=with_session).placement_key == read(chat("hi"), fields=with_session).placement_key
    assert read(b"\xff" * 9).placement_key != read(b"\xfe" * 9).placement_key


def test_placement_keys_are_the_same_in_all_processes_and_chains_are_not() -> None:
    program = (
        "from inference_engine_proxy_server.requests.prompt import read_prompt\n"
        "from inference_engine_proxy_server.requests.token_sizes import TokenSizes\n"
        "p = read_prompt(b'/', '/', b'', b'{\"prompt\": \"' + b'a' * 600 + b'\"}', TokenSizes())\n"
        "print(p.placement_key, p.chain[0])"
    )
    outputs = {
        tuple(
            subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
        )
        for _ in range(2)
    }
    assert len({key for key, _ in outputs}) == 1
    assert len({first for _, first in outputs}) == 2
