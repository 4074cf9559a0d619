"""The model for permissions: no request names one model to the proxy and another one to an engine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.unambiguous_model import unambiguous_model
from inference_engine_proxy_server.wire.request_head import HeadLimits, parse_request_head

LIMITS = HeadLimits(line_bytes=8192, total_bytes=32_768, field_count=100)
JSON = "application/json"
FORM = "multipart/form-data; boundary=X"


def model_of(body: bytes | str = b"", *, target: str = "/v1/x", content_type: str = JSON) -> str | None:
    content = body if isinstance(body, bytes) else body.encode()
    section = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\n"
    head = parse_request_head(section.encode(), LIMITS)
    return unambiguous_model(head.target, head.passed_on, content)


def part(name: str, value: str = "ours", *, disposition: str = "", more: str = "") -> str:
    disposition = disposition or f'Content-Disposition: form-data; name="{name}"'
    return f"--X\r\n{disposition}\r\n{more}\r\n{value}\r\n"


END = "--X--\r\n"
OURS, THEIRS = part("model"), part("model", "theirs")
FILE = part("file", "RIFF....", disposition='Content-Disposition: form-data; name="file"; filename="a.wav"')


@pytest.mark.parametrize(
    ("body", "model"),
    [
        pytest.param('{"model":"ours"}', "ours", id="plain"),
        pytest.param(' \r\n\t{ "messages": [], "model" : "ours" } \n', "ours", id="blanks around"),
        pytest.param(" " * 100 + '{"model":"ours"}', "ours", id="many blanks before"),
        pytest.param('{"\\u006dodel":"ours"}', "ours", id="name with an escape"),
        pytest.param('{"model":"o\\u0075rs"}', "ours", id="value with an escape"),
        pytest.param('{"model":"first","model":"last"}', "last", id="twice: engines take the last"),
        pytest.param('{"model":"first","\\u006dodel":"last"}', "last", id="twice, with an escape"),
        pytest.param('{"x":{"model":"inner"},"model":"ours"}', "ours", id="inside another member"),
        pytest.param('{"model":"模型 \\ud83d\\ude00"}', "模型 😀", id="not ASCII"),
        pytest.param('{"Model":"theirs","model":"ours"}', None, id="in another case, too"),
        pytest.param('{"MODEL":"theirs"}', None, id="in another case only"),
        pytest.param('{"x":{"model":"inner"}}', None, id="inside another member only"),
        pytest.param('{"messages":[]}', None, id="none"),
        pytest.param('{"model":null}', None, id="null"),
        pytest.param('{"model":["ours"]}', None, id="list"),
        pytest.param('{"model":5}', None, id="number"),
        pytest.param('[{"model":"ours"}]', None, id="list at the top"),
        pytest.param('{"model":"ours"}{"model":"theirs"}', None, id="two objects"),
        pytest.param('{"model":"ours"', None, id="cut off"),
        pytest.param('{"model":"ours","x":NaN}', None, id="what only some engines read"),
        pytest.param("model=ours", None, id="a form's text"),
        pytest.param(b'\xef\xbb\xbf{"model":"ours"}', "ours", id="byte order mark"),
        pytest.param('{"model":"ours"}'.encode("utf-16"), None, id="UTF-16, which vLLM reads"),
        pytest.param('{"model":"ours"}'.encode("utf-32-be"), None, id="UTF-32"),
        pytest.param(b'{"model":"\xff"}', None, id="no UTF-8"),
        pytest.param("[" * 100_000, None, id="endless nesting"),
    ],
)
def test_the_model_of_a_json_object(body: bytes | str, model: str | None) -> None:
    assert model_of(body) == model


@pytest.mark.parametrize(
    "body", [b'\xef\xbb\xbf{"model":"theirs"}', '{"model":"theirs"}'.encode("utf-16"), b"x", b"--"]
)
def test_an_unreadable_body_hides_the_model_of_the_query(body: bytes) -> None:
    assert model_of(body, target="/v1/x?model=ours") is None


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("/props?model=ours", "ours"),
        ("/props?a=b&model=ours&c", "ours"),
        ("/props?%6dodel=o%75rs", "ours"),
        ("/props?model=a+b%2Fc", "a b/c"),
        ("/props?model=ours&model=ours", "ours"),
        ("/props?model=ours&model=theirs", None),
        ("/props?model=ours&%6dodel=theirs", None),
        ("/props?model=ours&Model=theirs", None),
        ("/props?model=", ""),
        ("/props?xmodel=ours", None),
        ("/props", None),
    ],
)
def test_the_model_of_a_query(target: str, model: str | None) -> None:
    assert model_of(target=target) == model


def test_body_and_query_must_agree() -> None:
    """llama.cpp's router reads the query of a GET and ignores its body."""
    assert model_of('{"model":"ours"}', target="/props?model=ours") == "ours"
    assert model_of('{"model":"ours"}', target="/props?model=theirs") is None
    assert model_of('{"messages":[]}', target="/props?model=ours") is None


@pytest.mark.parametrize(
    ("body", "model"),
    [
        pytest.param(OURS + END, "ours", id="plain"),
        pytest.param(FILE + OURS + part("language", "en") + END, "ours", id="between others"),
        pytest.param(part("model", more="Content-Type: text/plain\r\n") + END, "ours", id="further lines"),
        pytest.param(FILE + END, None, id="none"),
        pytest.param(OURS + THEIRS + END, None, id="twice"),
        pytest.param(OURS + OURS + END, None, id="twice the same"),
        pytest.param(OURS + part("Model", "theirs") + END, None, id="in another case, too"),
        pytest.param(OURS + part("mo%64el", "theirs") + END, None, id="percent"),
        pytest.param(OURS + part('mod\\"el', "theirs") + END, None, id="escape"),
        *(
            pytest.param(OURS + part("", "theirs", disposition=f"{line}") + END, None, id=line)
            for line in (
                "Content-Disposition: form-data; name=model",
                "Content-Disposition: form-data; name*=utf-8''model",
                'Content-Disposition: form-data; name*0="mo"; name*1="del"',
                'Content-Disposition: form-data; x=y; name="model"',
                'Content-Disposition:form-data; name="model"',
                'Content-Disposition: form-data; name="file"; name="model"',
                'content-disposition: FORM-DATA;name="model"',
                'Content-Disposition : form-data; name="model"',
            )
        ),
        pytest.param(part("file", OURS + "x") + END, None, id="inside a file"),
        pytest.param(part("model", "ours\r\ntheirs") + END, None, id="a value of two lines"),
        pytest.param(part("model", "") + END, None, id="empty"),
        pytest.param("--Y\r\n" + OURS[5:] + END, None, id="before the first boundary"),
        pytest.param("--XY\r\n" + OURS[5:] + END, None, id="a longer boundary"),
    ],
)
def test_the_model_of_a_form(body: str, model: str | None) -> None:
    assert model_of(body, content_type=FORM) == model


@pytest.mark.parametrize(
    ("content_type", "model"),
    [
        (FORM, "ours"),
        ('multipart/form-data; boundary="X"', "ours"),
        ("multipart/form-data; charset=utf-8; Boundary=X", "ours"),
        ("multipart/form-data; boundary=X; charset=utf-8", "ours"),
        ("multipart/form-data; boundary=Y", None),
        ("multipart/form-data; boundary=Y; boundary=X", None),
        ("multipart/form-data; boundary*=X; boundary=X", None),
        ("multipart/form-data; boundary=X\r\nContent-Type: multipart/form-data; boundary=Y", None),
        ("multipart/form-data", None),
        (JSON, None),
    ],
)
def test_the_boundary_of_a_form_comes_from_its_content_type(content_type: str, model: str | None) -> None:
    assert model_of(OURS + END, content_type=content_type) == model


@given(st.binary(max_size=100), st.text("modelMODEL=&%6d", max_size=20))
def test_any_request_gives_a_name_or_none(body: bytes, query: str) -> None:
    model = model_of(body, target=f"/x?{query}")

    assert model is None or isinstance(model, str)


@given(
    st.dictionaries(st.sampled_from(["model", "Model", "mode", "x"]), st.text(max_size=5) | st.none() | st.integers())
)
def test_a_found_name_is_what_other_json_readers_find(members: dict[str, object]) -> None:
    model = model_of(json.dumps(members))

    assert model is None or members["model"] == model
