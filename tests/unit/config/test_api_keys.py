"""Keys in API_KEYS and in the key file; no secret is stored or shown."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.config.api_keys import (
    ApiKey,
    digest_of,
    keys_by_digest,
    new_secret,
    parse_key,
)
from inference_engine_proxy_server.config.key_file import KeyFileError, read_key_file
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError, load_settings

SECRET = "sk-planted-4b1f0c2d9e"  # noqa: S105 - opens nothing
OTHER = "sk-planted-77aa01bb22"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
NO_FILE = Path("/nonexistent/.env")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def error_of(file: Path) -> str:
    with pytest.raises(KeyFileError) as caught:
        read_key_file(file)
    assert caught.value.__cause__ is None or isinstance(
        caught.value.__cause__, OSError
    )  # a traceback would print it, too
    return str(caught.value)


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# --- API_KEYS


def test_a_key_is_a_name_and_a_secret() -> None:
    assert parse_key(f"alice:{SECRET}") == ApiKey("alice", hashlib.sha256(SECRET.encode()).digest())


def test_a_secret_may_have_colons() -> None:
    assert parse_key(f"alice:{SECRET}:more").digest == digest_of(f"{SECRET}:more".encode())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SECRET, id="no name"),
        pytest.param(f":{SECRET}", id="empty name"),
        pytest.param(f"al ice:{SECRET}", id="blank in the name"),
        pytest.param(f"ali\n:{SECRET}", id="line break in the name"),
        pytest.param(f"{'a' * 65}:{SECRET}", id="name too long"),
        pytest.param(f"alicé:{SECRET}", id="letter beyond ASCII in the name"),
        pytest.param("alice:", id="empty secret"),
        pytest.param("alice:planted-to-shrt", id="15 characters"),
        pytest.param("alice:planted with blanks in it", id="blank in the secret"),
        pytest.param("alice:planted\tplanted-planted", id="tab in the secret"),
        pytest.param("alice:planted-é-planted-planted", id="letter beyond ASCII in the secret"),
        pytest.param("alice:planted-planted-planted\n", id="line break after the secret"),
    ],
)
def test_an_invalid_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME:SECRET|16 characters") as caught:
        parse_key(text)

    assert "planted" not in str(caught.value)


def test_a_secret_of_sixteen_characters_is_long_enough() -> None:
    assert parse_key("alice:0123456789abcdef").name == "alice"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (f"alice:{SECRET},alice:{OTHER}", "two keys have the name alice"),
        (f"alice:{SECRET},bob:{SECRET}", "the keys alice and bob have the same secret"),
    ],
)
def test_two_keys_cannot_share_a_name_or_a_secret(keys: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        keys_by_digest(map(parse_key, keys.split(",")))

    assert "planted" not in str(caught.value)


def test_new_secrets_are_valid_and_unique() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len({parse_key(f"a:{secret}").digest for secret in secrets}) == 100
    assert all(len(secret) == len("sk-") + 43 for secret in secrets)  # 256 bits in base64


# --- secrets are neither stored nor shown


def test_a_key_neither_stores_nor_shows_its_secret() -> None:
    key = parse_key(f"alice:{SECRET}")

    assert key.digest == hashlib.sha256(SECRET.encode()).digest()
    for shown in (repr(key), str(key)):
        assert "alice" in shown
        assert SECRET not in shown
        assert DIGEST not in shown
        assert repr(key.digest) not in shown


def test_settings_show_no_secret() -> None:
    environ = {"API_KEYS": f"alice:{SECRET}"}
    environ |= dict.fromkeys(("BACKEND_API_KEY", "ADMIN_KEY", "METRICS_KEY"), OTHER)
    settings = load_settings(environ, NO_FILE).settings

    for shown in (repr(settings), str(settings)):
        assert "planted" not in shown
        assert DIGEST not in shown


@pytest.mark.parametrize("name", ["API_KEYS", "BACKEND_API_KEY", "ADMIN_KEY", "METRICS_KEY"])
def test_a_refused_secret_is_not_repeated(name: str) -> None:
    for value in ("planted é", f"{SECRET} {SECRET}", f"alice:{SECRET},alice:{SECRET}é", f"x {SECRET}"):
        with pytest.raises(SettingsError, match=name) as caught:
            load_settings({name: value}, NO_FILE)

        assert "planted" not in str(caught.value)


# --- the file


def test_a_file_has_keys_with_their_limits(file: Path) -> None:
    file.write_text(f"""\
keys:
  - name: alice
    sha256: {DIGEST.upper()}
    models: [tiny, "gpt 4"]
    priority: 5
    requests_per_minute: 60
    tokens_per_minute: 10_000
    concurrent_requests: 2
    tokens_per_day: 2_000_000
    tokens_per_month: 30_000_000_000
    expires: 2027-01-31T12:00:00Z
  - {{name: bob, secret: {OTHER}}}
""")

    assert read_key_file(file) == [
        ApiKey(
            name="alice",
            digest=bytes.fromhex(DIGEST),
            models=frozenset({"tiny", "gpt 4"}),
            priority=5,
            requests_per_minute=60,
            tokens_per_minute=10_000,
            concurrent_requests=2,
            expires_at=seconds("2027-01-31T12:00:00"),
            tokens_per_day=2_000_000,
            tokens_per_month=30_000_000_000,
        ),
        ApiKey("bob", digest_of(OTHER.encode())),
    ]


def test_a_key_may_permit_no_model_at_all(file: Path) -> None:
    file.write_text(f"keys: [{{name: a, sha256: {DIGEST}, models: []}}]")

    assert read_key_file(file)[0].models == frozenset()


@pytest.mark.parametrize(
    ("written", "at"),
    [
        pytest.param("2027-01-31", "2027-01-31T23:59:59.999999", id="a date means its end"),
        pytest.param("'2027-01-31'", "2027-01-31T23:59:59.999999", id="date as text"),
        pytest.param("2027-01-31T12:00:00Z", "2027-01-31T12:00:00", id="time"),
        pytest.param("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00", id="time with an offset"),
        pytest.param("'2027-01-31T12:00:00+02:00'", "2027-01-31T10:00:00", id="time with an offset as text"),
        pytest.param("2027-01-31 12:00:00", "2027-01-31T12:00:00", id="time without a zone is UTC"),
        pytest.param("9999-12-31", "9999-12-31T23:59:59.999999", id="the last possible date"),
    ],
)
def test_expiry_is_a_date_or_a_time(file: Path, written: str, at: str) -> None:
    file.write_text(f"keys: [{{name: a, sha256: {DIGEST}, expires: {written}}}]")

    assert read_key_file(file)[0].expires_at == pytest.approx(seconds(at), abs=1e-3)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        pytest.param(f"secret: {SECRET}, sha256: {DIGEST}", "keys.0: set either 'sha256' or 'secret'", id="both"),
        pytest.param("priority: 1", "keys.0: set either 'sha256' or 'secret'", id="neither"),
        pytest.param("secret: planted", "keys.0: a secret must have 16 characters", id="short secret"),
        pytest.param(
            "secret: planted planted planted", "keys.0: a secret must have 16 characters", id="blank in the secret"
        ),
        pytest.param("secret: [planted-planted-planted]", "keys.0.secret", id="list as a secret"),
        pytest.param("sha256: planted", "keys.0.sha256", id="no digest"),
        pytest.param(f"sha256: {DIGEST}0", "keys.0.sha256", id="digest too long"),
        pytest.param(f"sha256: {DIGEST}, secrt: {SECRET}", "keys.0.secrt", id="unknown field"),
        pytest.param(f"sha256: {DIGEST}, models: tiny", "keys.0.models", id="models are no list"),
        pytest.param(f"sha256: {DIGEST}, models: [1]", "keys.0.models.0", id="a number as a model"),
        pytest.param(f"sha256: {DIGEST}, models: ", "keys.0.models", id="models left out by a slip"),
        pytest.param(f"sha256: {DIGEST}, priority: high", "keys.0.priority", id="word as a number"),
        pytest.param(f"sha256: {DIGEST}, priority: 101", "keys.0.priority", id="priority too high"),
        pytest.param(f"sha256: {DIGEST}, requests_per_minute: 0", "keys.0.requests_per_minute", id="limit of 0"),
        pytest.param(f"sha256: {DIGEST}, requests_per_minute: ", "keys.0.requests_per_minute", id="limit left out"),
        pytest.param(f"sha256: {DIGEST}, tokens_per_minute: -1", "keys.0.tokens_per_minute", id="limit below 0"),
        pytest.param(f"sha256: {DIGEST}, tokens_per_minute: .inf", "keys.0.tokens_per_minute", id="no limit as .inf"),
        pytest.param(f"sha256: {DIGEST}, concurrent_requests: 1.5", "keys.0.concurrent_requests", id="a half"),
        pytest.param(f"sha256: {DIGEST}, expires: soon", "keys.0.expires", id="no date"),
        pytest.param(f"sha256: {DIGEST}, expires: 1800000000", "keys.0.expires", id="number as a date"),
        pytest.param(f"sha256: {DIGEST}, expires: ", "keys.0.expires", id="expiry left out"),
        pytest.param(f"sha256: {DIGEST}, expires: '2027-02-31'", "keys.0.expires", id="no such day"),
        pytest.param(f"sha256: {DIGEST}, name: bob", "", id="a name twice"),
    ],
)
def test_an_error_in_an_entry_names_its_place(file: Path, entry: str, place: str) -> None:
    file.write_text(f"keys: [{{name: alice, {entry}}}]")

    message = error_of(file)

    assert message.startswith(f"{file}: {place}" if place else f"{file} repeats the name name, line 1")
    assert "planted" not in message
    assert DIGEST not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f"keys: {SECRET}", "keys", id="no list"),
        pytest.param(f"keys: [{SECRET}]", "keys.0", id="no object"),
        pytest.param(f"- {SECRET}", "", id="list at the top"),
        pytest.param(f"{SECRET}", "", id="text at the top"),
        pytest.param(f"{SECRET}: alice", "", id="secrets as names at the top"),
        pytest.param(f"keys: [{{name: a, sha256: {DIGEST}, {SECRET}: x}}]", "keys.0", id="secret as a name"),
        pytest.param(f"keys: [{{{SECRET}: alice}}]", "keys.0", id="secret as a name, and no name"),
        pytest.param(f"keys:\n  - name: [\n{SECRET}", "is not YAML, line 3", id="bracket left open"),
        pytest.param(f"keys:\n\t- {SECRET}", "is not YAML, line 2", id="tab"),
        pytest.param(f"keys: *{SECRET}", "is not YAML, line 1", id="unknown anchor"),
        pytest.param(f"keys: !{SECRET} x", "is not YAML, line 1", id="unknown tag"),
        pytest.param(f"keys: [{{name: a, secret: {SECRET}, expires: 2027-02-31}}]", "", id="no such day"),
        pytest.param("[" * 5000, "is not YAML", id="endless nesting"),
    ],
)
def test_an_invalid_file_is_refused_without_repeating_its_content(file: Path, text: str, message: str) -> None:
    file.write_text(text)

    error_text = error_of(file)

    assert error_text.startswith(str(file))
    assert message in error_text
    assert "planted" not in error_text
    assert "\n" not in error_text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("name: a, request_per_minute: 1", "request_per_minute is unknown; did you mean requests_per_minute?"),
        ("name: a, model: [m]", "model is unknown; did you mean models?"),
        ("name: a, expire: 2027-01-31", "expire is unknown; did you mean expires?"),
        ("name: a, sha265: x", "sha265 is unknown; did you mean sha256?"),
        ("name: a, rate: 1", "rate is unknown; use one of: name, secret, sha256, models, priority, "),
        ("name: a, requests_per_minute: many", "requests_per_minute: must be a whole number from 1 to 1000000000"),
        ("name: a, priority: 101", "priority: must be a whole number from -100 to 100"),
        ("name: a, models: tiny", "models: must be a list"),
        ("name: a, models: [1]", "models.0: must be text"),
        ("name: a b", "name: must be 1 to 64 letters, digits, '.', '_' and '-'"),
        ("priority: 1", "name is missing"),
        ("name: a, sha256: 12", "sha256: must be text"),
        ("name: a, sha256: abc", "sha256: must be 64 hexadecimal digits, as `inference-proxy keys new NAME` prints"),
        ("name: a, expires: soon", "expires: must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z"),
    ],
)
def test_an_error_in_an_entry_says_what_is_valid(file: Path, entry: str, message: str) -> None:
    file.write_text(f"keys: [{{{entry}}}]")

    assert error_of(file).startswith(f"{file}: keys.0.{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key: []", ": key is unknown; did you mean keys?"),
        ("keys: ", ": keys: must be a list"),
        ("keys: [a]", ": keys.0: must be a mapping"),
        ("- name: a", ": must be a mapping that begins with 'keys:'"),
        (
            "keys:\n  - name: a\n   sha256: b",
            " is not YAML, line 3: expected <block end>, but found '<block mapping start>' (",
        ),
        ("keys:\n\t- name: a", " is not YAML, line 2: found character '\\t' that cannot start any token (indent with"),
        ("keys:\n  - name: a: b", " is not YAML, line 2: mapping values are not allowed here (is the line indented"),
        ("keys:\n  - name: a\n    sha256: b\n   models: []", " is not YAML, line 4: expected <block end>, but found"),
        ("keys: [{name: 'a}]", " is not YAML, line 1: found unexpected end of stream (a quotation mark is missing)"),
        ("keys: [{expires: 2027-02-31}]", " is not YAML, or contains an impossible date or number: day is out of"),
        ("keys: [{name: a, name: b}]", " repeats the name name, line 1"),
    ],
)
def test_an_error_in_a_file_says_what_is_wrong(file: Path, text: str, message: str) -> None:
    file.write_text(text)

    assert error_of(file).startswith(f"{file}{message}")


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"keys: \xff\xfe")

    assert error_of(file) == f"{file} is not UTF-8 text"


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(file: Path) -> None:
    assert error_of(file) == f"API_KEYS_FILE is {str(file)!r}: No such file or directory"
    assert error_of(file.parent) == f"API_KEYS_FILE is {str(file.parent)!r}: Is a directory"


@given(st.binary(max_size=200) | st.text(alphabet="keys: -[]{}nam\n\"'2701-:&*!|>#\t", max_size=200).map(str.encode))
def test_any_content_gives_keys_or_one_line_of_error(content: bytes) -> None:
    class Written(type(Path())):  # type: ignore[misc]  # a file with the given content
        def read_text(self, *_: object, **__: object) -> str:
            return content.decode("utf-8")

    error_text = ""
    try:
        keys = read_key_file(Written("keys.yaml"))
    except KeyFileError as error:
        error_text, keys = str(error), []

    assert "\n" not in error_text
    assert all(isinstance(key, ApiKey) for key in keys)


def test_keys_created_in_code_are_kept_unchanged() -> None:
    key = ApiKey("a", digest_of(b"x"), models=frozenset({"m"}))

    assert Settings(api_keys=(key,)).api_keys == (key,)


def test_an_empty_file_is_refused_because_it_may_be_unfinished(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("# nothing yet\n")
    with pytest.raises(KeyFileError, match=r"keys\.yaml is empty; if that is intended, write 'keys: \[\]'$"):
        read_key_file(file)

    file.write_text("keys: []")
    assert read_key_file(file) == []
