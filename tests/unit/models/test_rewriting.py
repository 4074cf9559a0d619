"""What engines receive: the name of the model, and the parameters that the fleet file states."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.models.catalog import ModelCatalog
from support.fleet_files import catalog_of

CHAT = "/v1/chat/completions"
JSON = b"content-type: application/json\r\n"
MESSAGES = [{"role": "user", "content": "hi"}]

RULES = catalog_of("""\
models:
  m:
    aliases: [alias]
    parameters:
      default: {temperature: 0.6, chat_template_kwargs: {enable_thinking: false}}
      set: {max_tokens: 4096}
      remove: [logit_bias]
      system_prompt: Answer briefly.
  m-think:
    serves_as: m
    parameters: {set: {chat_template_kwargs: {enable_thinking: true}}}
""")


def sent(
    body: bytes, *, name: str = "m", path: str = CHAT, catalog: ModelCatalog = RULES, fields: bytes = JSON
) -> bytes:
    """What the engine gets."""
    named = catalog.find(name, lambda name: False)
    assert named is not None
    return named.rewriting.body(path, fields, body)


def meaning(body: dict[str, Any], **options: Any) -> Any:
    return json.loads(sent(json.dumps(body).encode(), **options))


def test_all_rules_apply_in_one_pass() -> None:
    question = b'{"role": "user", "content": "\\u00e9"}'
    before = b'{"model": "m", "messages": [ %b],"logit_bias": {"7": -100}, "seed": 1.0}' % question
    assert sent(before) == (
        b'{"model": "m", "messages": [{"role":"system","content":"Answer briefly."}, %b],"seed": 1.0,'
        b'"temperature":0.6,"chat_template_kwargs":{"enable_thinking":false},"max_tokens":4096}' % question
    )


def test_a_default_yields_to_the_client() -> None:
    given = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": True, "x": 1}}
    found = meaning({"messages": MESSAGES, **given})
    assert {name: found[name] for name in given} == given


def test_an_entry_that_serves_as_another_adds_to_its_rules() -> None:
    body = {"model": "m-think", "messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": False}}
    found = meaning(body, name="m-think")
    assert found.pop("messages")[0] == {"role": "system", "content": "Answer briefly."}
    assert found == {
        "model": "m",
        "temperature": 0.6,
        "max_tokens": 4096,
        "chat_template_kwargs": {"enable_thinking": True},
    }


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ("default: {a: 2}", {"a": 5}, {"a": 5}),
        ("default: {a: 2}", {}, {"a": 2}),
        ("remove: [a]", {"a": 5}, {}),
        ("set: {b: {c: 3}}", {"b": {"c": 0, "x": 1}}, {"a": 1, "b": {"c": 3}}),
        ("set: {c: 3}", {"c": 0}, {"a": 1, "c": 3}),
        ("set: {a: {x: 1}}", {"a": 5}, {"a": {"x": 1}}),
        ("remove: [a.x]", {"a": {"x": 1, "y": 2}}, {"a": {"y": 2}}),
        ("default: {b: 7}", {"b": {"x": 1}}, {"a": 1, "b": {"x": 1}}),
    ],
)
def test_an_own_rule_replaces_the_inherited_rule_about_the_same_parameter(
    own: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    catalog = catalog_of(f"""\
models:
  base: {{parameters: {{set: {{a: 1}}, remove: [b, c]}}}}
  own: {{serves_as: base, parameters: {{{own}}}}}
""")
    assert meaning(given, name="own", catalog=catalog) == {**expected, "model": "base"}


# --- names of parameters


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "max_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/completion", "n_predict"),
        ("/infill", "n_predict"),
    ],
)
@pytest.mark.parametrize("given", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"])
def test_the_limit_of_an_answer_has_the_name_of_the_path(path: str, name: str, given: str) -> None:
    limits = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"}
    found = meaning({given: 10_000}, path=path)
    assert {key: value for key, value in found.items() if key in limits} == {name: 4096}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_tokens": 5}),
        ({"max_tokens": None}, {"max_tokens": 5}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": None}, {"max_completion_tokens": None, "max_tokens": 5}),
        ({"max_tokens": None, "n_predict": 9}, {"max_tokens": None, "n_predict": 9}),
    ],
)
def test_a_default_limit_yields_to_a_limit_of_any_name(given: dict[str, Any], expected: dict[str, Any]) -> None:
    catalog = catalog_of("models: {m: {parameters: {default: {max_tokens: 5}}}}")
    assert meaning(given, catalog=catalog) == expected


def test_a_removed_limit_is_removed_under_any_name() -> None:
    catalog = catalog_of("models: {m: {parameters: {remove: [max_tokens]}}}")
    assert meaning({"max_completion_tokens": 1, "n_predict": 1, "max_tokens": 1}, catalog=catalog) == {}


def test_names_with_dots_lead_into_mappings_except_those_of_llamacpp() -> None:
    catalog = catalog_of("""\
models:
  m:
    parameters:
      set: {chat_template_kwargs.enable_thinking: true, speculative.n_max: 8}
      remove: [stream_options.include_usage, speculative.n_min]
""")
    given = {"stream_options": {"include_usage": True, "x": 1}, "speculative.n_min": 1}
    assert meaning(given, catalog=catalog) == {
        "stream_options": {"x": 1},
        "chat_template_kwargs": {"enable_thinking": True},
        "speculative.n_max": 8,
    }


# --- reasoning effort

EFFORTS = catalog_of("""\
models:
  m:
    parameters:
      reasoning_effort:
        none: {chat_template_kwargs: {enable_thinking: false}}
        low: {chat_template_kwargs: {enable_thinking: true}, thinking_budget_tokens: 512}
        max: high
  m-quick:
    serves_as: m
    parameters: {default: {reasoning_effort: none}}
  m-slow:
    serves_as: m
    parameters: {set: {reasoning_effort: low}}
  m-thinks-anyway:
    serves_as: m
    parameters: {set: {chat_template_kwargs: {enable_thinking: true}}}
""")
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
LOW = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 512}


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        (CHAT, {"reasoning_effort": "none"}, OFF),
        (CHAT, {"reasoning_effort": "low"}, LOW),
        (CHAT, {"reasoning_effort": "max"}, {"reasoning_effort": "high"}),
        (CHAT, {"reasoning_effort": "medium"}, {"reasoning_effort": "medium"}),
        (CHAT, {"reasoning_effort": None}, {"reasoning_effort": None}),
        (CHAT, {"reasoning_effort": 5}, {"reasoning_effort": 5}),
        (CHAT, {}, {}),
        (
            "/v1/responses",
            {"reasoning": {"effort": "none", "summary": "auto"}},
            {"reasoning": {"summary": "auto"}, **OFF},
        ),
        ("/v1/responses", {"reasoning": {"effort": "max"}}, {"reasoning": {"effort": "high"}}),
        ("/v1/responses", {"reasoning": "max"}, {"reasoning": "max"}),
        ("/v1/messages", {"output_config": {"effort": "low"}}, {"output_config": {}, **LOW}),
    ],
)
def test_an_effort_becomes_what_the_model_takes(path: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert meaning(given, path=path, catalog=EFFORTS) == expected


def test_an_effort_with_escapes_is_understood() -> None:
    assert json.loads(sent(b'{"reasoning_effort":"n\\u006fne"}', catalog=EFFORTS)) == OFF


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("m-quick", {}, OFF),
        ("m-quick", {"reasoning_effort": None}, OFF),
        ("m-quick", {"reasoning_effort": "low"}, LOW),
        ("m-quick", {"reasoning_effort": "medium"}, {"reasoning_effort": "medium"}),
        ("m-slow", {"reasoning_effort": "none"}, LOW),
        ("m-thinks-anyway", {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_a_stated_effort_has_the_same_meaning(name: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert meaning(given, name=name, catalog=EFFORTS) == {**expected, "model": "m"}


# --- system prompt

PROMPT = catalog_of("models: {m: {parameters: {system_prompt: 'Be \"brief\", é.'}}}")
TEXT = 'Be "brief", é.'


@pytest.mark.parametrize(
    "messages", [MESSAGES, [{"content": "no role"}], [{"role": "user", "content": '"role": "system"'}]]
)
def test_a_chat_without_a_system_prompt_gets_one(messages: list[Any]) -> None:
    expected = [{"role": "system", "content": TEXT}, *messages]
    assert meaning({"messages": messages}, catalog=PROMPT) == {"messages": expected}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "x"}, *MESSAGES]}),
        (CHAT, {"messages": [*MESSAGES, {"role": "developer", "content": "x"}]}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": "text"}),
        (CHAT, {"messages": None}),
        (CHAT, {}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/messages", {"messages": MESSAGES, "system": "x"}),
        ("/v1/messages", {"messages": MESSAGES, "system": [{"type": "text", "text": "x"}]}),
        ("/v1/responses", {"input": "x", "instructions": "y"}),
        ("/v1/responses", {"input": [{"role": "developer", "content": "x"}, *MESSAGES]}),
        ("/v1/responses", {"instructions": ""}),
    ],
)
def test_a_request_with_a_system_prompt_or_without_messages_stays_as_it_is(path: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    assert sent(raw, path=path, catalog=PROMPT) == raw


@pytest.mark.parametrize(
    ("path", "member", "turns"),
    [("/v1/messages", "system", {"messages": MESSAGES}), ("/v1/responses", "instructions", {"input": "x"})],
)
@pytest.mark.parametrize("given", [[], [None], [""], [[]]], ids=["missing", "null", "empty", "empty list"])
def test_the_system_prompt_is_where_the_api_has_it(
    path: str, member: str, turns: dict[str, Any], given: list[Any]
) -> None:
    body = turns | dict(zip([member], given, strict=False))
    assert meaning(body, path=path, catalog=PROMPT) == {**turns, member: TEXT}


# --- where rules apply, and where they do not


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/tokenize", "/v1/messages/count_tokens", "/api/chat", "/v1/rerank"]
)
def test_other_paths_get_the_engines_name_and_no_parameters(path: str) -> None:
    assert sent(b'{"model" : "alias", "input": 1.0}', name="alias", path=path) == b'{"model" : "m", "input": 1.0}'
    same = b'{"model": "m", "input": "x"}'
    assert sent(same, path=path) is same


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"alias","x":{"model":"alias"}}', b'{"model":"m","x":{"model":"alias"}}'),
        (b'{"model":"al\\u0069as"}', b'{"model":"m"}'),
        (b'{"model":"other","model":"alias"}', b'{"model":"m","model":"m"}'),
        (b'{"Model": "alias"}', b'{"Model": "m"}'),
        (b'\xef\xbb\xbf{"model": "alias", "x": NaN}', b'\xef\xbb\xbf{"model": "m", "x": NaN}'),
        ('{"model": "alias", "x": "é"}'.encode("utf-16"), '{"model": "m", "x": "é"}'.encode()),
        (b"{ not JSON", b"{ not JSON"),
        (b'{"input": 1}', b'{"input": 1}'),
    ],
)
def test_the_name_is_replaced_wherever_an_engine_reads_it(body: bytes, expected: bytes) -> None:
    assert sent(body, name="alias", path="/v1/embeddings") == expected


FORM = b"content-type: multipart/form-data; boundary=X\r\n"


def part(name: bytes, value: bytes) -> bytes:
    return b'--X\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value)


def test_the_name_is_replaced_in_forms() -> None:
    audio = part(b'file"; filename="a.wav', bytes(range(256)) + b"--X model alias")
    form = b"preamble\r\n" + audio + part(b"model", b"%b") + part(b"language", b"alias") + b"--X--\r\n"
    before = form.replace(b"%b", b"alias")
    assert sent(before, name="alias", path="/v1/audio/transcriptions", fields=FORM) == form.replace(b"%b", b"m")


def test_the_name_is_replaced_in_url_encoded_text() -> None:
    fields = b"content-type: application/x-www-form-urlencoded\r\n"
    body = sent(b"a=alias&mod%65l=al%69as&x", name="alias", path="/x", fields=fields)
    assert body == b"a=alias&mod%65l=m&x"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/props", b"/props"),
        (b"/props?", b"/props?"),
        (b"/props?model=alias", b"/props?model=org%2Fm"),
        (b"/props?x=alias&model=alias&autoload=0", b"/props?x=alias&model=org%2Fm&autoload=0"),
    ],
)
def test_the_name_is_replaced_in_the_query(target: bytes, expected: bytes) -> None:
    named = catalog_of("models: {org/m: {aliases: [alias]}}").find("alias", lambda name: False)
    assert named is not None
    assert named.rewriting.target(target) == expected


@pytest.mark.parametrize("body", [b"{ not JSON", b"[]", b'{"model": "m"', b"--X\r\n"])
def test_a_body_whose_parameters_cannot_be_set_is_rejected(body: bytes) -> None:
    with pytest.raises(ClientError, match="cannot read the body") as caught:
        sent(body)
    assert (caught.value.status, caught.value.code) == (400, "unreadable_body")


def test_an_encoded_body_whose_parameters_cannot_be_set_is_rejected() -> None:
    with pytest.raises(ClientError, match="Content-Encoding"):
        sent(gzip.compress(b"{}"), fields=JSON + b"content-encoding: gzip\r\n")


def test_a_long_body_keeps_its_bytes() -> None:
    content = json.dumps('x\n"é\\' * 500_000).encode()
    before = b'{"model": "alias", "messages": [{"role":"system","content":""},{"role":"user","content":%b}]}' % content
    after = sent(before, name="alias")
    assert after.startswith(before[:-1].replace(b'"alias"', b'"m"'))
    assert json.loads(after)["max_tokens"] == 4096


def test_the_default_model_is_added_to_the_body() -> None:
    default = catalog_of("default_model: alias\nmodels: {m: {aliases: [alias]}}").default
    assert default is not None
    assert default.rewriting.body("/v1/embeddings", JSON, b'{"input": "x"}') == b'{"input": "x"}'
    catalog = catalog_of("default_model: m\nmodels: {m: {parameters: {set: {top_k: 1}}}}")
    assert catalog.default is not None
    assert catalog.default.rewriting.body(CHAT, JSON, b'{"model":null}') == b'{"model":"m","top_k":1}'
