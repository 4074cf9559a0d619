import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.requested_model import requested_model

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
    assert requested_model(target, body) == model


@given(st.binary(max_size=200))
def test_no_body_raises(body: bytes) -> None:
    for start in (b"", b"{", b"--"):
        requested_model(b"/", start + body)
