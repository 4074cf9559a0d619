"""Which requests may pass, by their header sections. End-to-end tests cover the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.gate import Access, Gate, Viewer
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.destinations import Destinations
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead, parse_request_head

ALICE, BOB, ADMIN, ANNOUNCE, METRICS = (
    f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "admin", "announce", "metrics")
)
OPEN_PATHS = ("/", "/health", "/livez", "/docs")
CHAT = "POST /v1/chat/completions"
LIMITS = HeadLimits(line_bytes=8192, total_bytes=32_768, field_count=100)


def gate(
    *,
    keys: bool = True,
    admin: str | None = None,
    announce: str | None = None,
    metrics: str | None = None,
    operators_elsewhere: bool = False,
) -> Gate:
    names = (("alice", ALICE), ("bob", BOB))
    ring = KeyRing([ApiKey(name, digest_of(secret.encode())) for name, secret in names], None, lambda: 0.0)
    return Gate(
        ring if keys else None,
        Allowances(lambda: 0.0, Spending(lambda: 0.0)),
        admin_key=admin,
        announce_key=announce,
        metrics_key=metrics,
        operators_elsewhere=operators_elsewhere,
    )


def head_of(request: str, *lines: str | bytes) -> RequestHead:
    """A request like ``GET /path`` with these header lines."""
    fields = [line if isinstance(line, bytes) else line.encode() for line in ("Host: a", *lines)]
    section = b"".join(line + b"\r\n" for line in (f"{request} HTTP/1.1".encode(), *fields))
    head = parse_request_head(section, LIMITS)
    head.destination = Destinations([*OPEN_PATHS, "/v1/models"], lambda *_: False).of(head.method, head.path)
    return head


def admitted(at: Gate, request: str, *lines: str | bytes) -> Access | None:
    """The permissions that the gate grants."""
    access = at.admit(head_of(request, *lines))
    assert not isinstance(access, Viewer)
    return access


def name(access: Access | None) -> str | None:
    return None if access is None else access.key.name


def status(at: Gate, request: str, *lines: str | bytes) -> int:
    """The status of the refusal; 200 if the request passes."""
    try:
        admitted(at, request, *lines)
    except ClientError as error:
        return error.status
    return 200


def operators_status(at: Gate, request: str, *lines: str) -> int:
    """The same on the admin port."""
    try:
        at.admit_operator(head_of(request, *lines))
    except ClientError as error:
        return error.status
    return 200


# --- client keys


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([f"Authorization: Bearer {ALICE}"], id="OpenAI"),
        pytest.param([f"x-api-key: {ALICE}"], id="Anthropic"),
        pytest.param([f"api-key: {ALICE}"], id="Azure"),
        pytest.param(["X-Api-Key: none", f"Api-Key: {ALICE}"], id="Azure's is good"),
        pytest.param([f"AUTHORIZATION: bearer {ALICE}"], id="lower case"),
        pytest.param([f"authorization:   BEARER    {ALICE}  "], id="blanks"),
        pytest.param([f"Authorization: Bearer {ALICE}", f"X-Api-Key: {BOB}"], id="both: OpenAI's counts"),
        pytest.param(["Authorization: Bearer none", f"X-Api-Key: {ALICE}"], id="one of both is good"),
        pytest.param(["Authorization: Basic YTpi", f"X-Api-Key: {ALICE}"], id="another scheme beside it"),
        pytest.param([f"Authorization: Bearer {ALICE}", "Connection: authorization"], id="called hop-by-hop"),
    ],
)
def test_a_valid_key_passes(lines: list[str]) -> None:
    assert name(admitted(gate(), CHAT, *lines)) == "alice"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="none"),
        pytest.param([f"Authorization: Bearer {ALICE}x"], id="longer"),
        pytest.param([f"Authorization: Bearer {ALICE[:-1]}"], id="shorter"),
        pytest.param([f"Authorization: Bearer {ALICE.upper()}"], id="upper case"),
        pytest.param([f"Authorization: Bearer {ALICE} {ALICE}"], id="twice in one"),
        pytest.param([f"Authorization: Bearer {ALICE},{BOB}"], id="list"),
        pytest.param([f'Authorization: Bearer "{ALICE}"'], id="quoted"),
        pytest.param([f"Authorization: Bearer\t{ALICE}"], id="tab"),
        pytest.param([f"Authorization: Bearer{ALICE}"], id="no blank"),
        pytest.param(["Authorization: Bearer"], id="empty"),
        pytest.param(["Authorization: Bearer "], id="blank"),
        pytest.param(["Authorization:"], id="no scheme"),
        pytest.param(["Authorization: Bearer null"], id="null"),
        pytest.param([f"Authorization: {ALICE}"], id="without Bearer"),
        pytest.param([f"Authorization: Basic {ALICE}"], id="Basic"),
        pytest.param([f"Authorization: Token {ALICE}"], id="another scheme"),
        pytest.param([f"Proxy-Authorization: Bearer {ALICE}"], id="for another proxy"),
        pytest.param([f"Cookie: authorization=Bearer {ALICE}"], id="cookie"),
        pytest.param([f"X-Authorization: Bearer {ALICE}"], id="another field"),
        pytest.param([f"Ocp-Apim-Subscription-Key: {ALICE}"], id="the field of another gateway"),
        pytest.param([f"X-Api-Key: Bearer {ALICE}"], id="Bearer in Anthropic's"),
        pytest.param(["X-Api-Key:"], id="empty in Anthropic's"),
        pytest.param([f"X-Api-Key: {digest_of(ALICE.encode()).hex()}"], id="the digest"),
        pytest.param(["Authorization: Bearer alice"], id="the name"),
        pytest.param([f"Authorization: Bearer alice:{ALICE}"], id="name and secret"),
        pytest.param([b"Authorization: Bearer \xe2\x80\x8b" + ALICE.encode()], id="Unicode"),
        pytest.param([f"Authorization: Bearer {ALICE}".encode() + b"\xa0"], id="no-break space"),
        pytest.param(["Authorization: Bearer " + "x" * 30_000], id="very long"),
        pytest.param(["Authorization: Bearer ' OR '1'='1"], id="SQL"),
        pytest.param(["Origin: http://a", "Access-Control-Request-Method: POST"], id="like a preflight, but a POST"),
    ],
)
def test_anything_else_is_refused_with_401(lines: list[str | bytes]) -> None:
    assert status(gate(), CHAT, *lines) == 401


@pytest.mark.parametrize("field", ["Authorization: Bearer", "X-Api-Key:", "Api-Key:"])
def test_a_repeated_key_header_is_refused_with_400(field: str) -> None:
    assert status(gate(), CHAT, f"{field} {ALICE}", f"{field.lower()} {ALICE}") == 400
    assert status(gate(), CHAT, f"{field} {ALICE}", f"{field} {BOB}") == 400


def test_a_refusal_distinguishes_a_missing_key_from_a_wrong_one() -> None:
    for lines, message in (([], "An API key is required"), (["X-Api-Key: wrong"], "not valid here")):
        with pytest.raises(ClientError, match=message) as caught:
            admitted(gate(), CHAT, *lines)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(("path", "setting"), [("/admin/keys", "ADMIN_KEY"), ("/metrics", "METRICS_KEY")])
def test_a_refusal_names_the_setting_that_holds_the_key_of_operators(path: str, setting: str) -> None:
    for lines, message in (([], f"{setting} is required, as"), ([f"X-Api-Key: {ALICE}"], f"The key is not {setting}")):
        with pytest.raises(ClientError, match=message):
            admitted(gate(admin=ADMIN, metrics=METRICS), f"GET {path}", *lines)


@pytest.mark.parametrize("lines", [[], [f"Authorization: {ALICE}"], [f"Authorization: Basic {ALICE}"]])
def test_a_refusal_without_a_key_names_the_headers_that_are_accepted(lines: list[str]) -> None:
    with pytest.raises(ClientError, match="'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'"):
        admitted(gate(), CHAT, *lines)


def test_a_key_in_any_header_is_kept_from_the_backend_unless_it_is_forwarded() -> None:
    head = head_of(CHAT, f"Api-Key: {ALICE}", f"X-Api-Key: {BOB}")
    assert b"api-key" not in head.passed_on.lower()
    assert head.credentials == f"x-api-key: {BOB}\r\napi-key: {ALICE}\r\n".encode()


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_open_paths_need_no_key_and_ignore_a_wrong_one(method: str, path: str) -> None:
    assert admitted(gate(), f"{method} {path}") is None
    assert admitted(gate(), f"{method} {path}?x=1", "Authorization: Bearer wrong") is None
    assert name(admitted(gate(), f"{method} {path}", f"X-Api-Key: {BOB}")) == "bob"


@pytest.mark.parametrize(
    "request_line",
    [
        *(f"{method} {path}" for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get") for path in OPEN_PATHS),
        *(
            f"GET {path}"
            for path in ("//health", "/health//", "/Health", "/%68ealth", "/health;x", "/health/../v1", "/.")
        ),
        f"GET /v1/models?api_key={ALICE}",
        f"GET /v1/models?authorization=Bearer%20{ALICE}",
        f"GET /{ALICE}",
        "GET http://a/v1/models",
        "GET http://a?/health",
        "OPTIONS *",
    ],
)
def test_all_other_paths_need_a_key(request_line: str) -> None:
    is_root = request_line == "GET http://a?/health"  # the path of this target is "/"
    assert status(gate(), request_line) == (200 if is_root else 401)
    assert name(admitted(gate(), request_line, f"X-Api-Key: {BOB}")) == "bob"


def test_a_preflight_needs_no_key() -> None:
    assert admitted(gate(), "OPTIONS /v1/chat/completions", "Access-Control-Request-Method: POST") is None


def test_without_configured_keys_every_request_passes() -> None:
    for lines in ([], ["Authorization: Bearer whatever"], ["Authorization: Basic YTpi"]):
        assert admitted(gate(keys=False), CHAT, *lines) is None


@given(value=st.binary(max_size=60).filter(lambda value: not {10, 13, 0} & set(value)), field=st.booleans())
def test_random_bytes_are_no_key(value: bytes, field: bool) -> None:
    line = b"X-Api-Key: " + value if field else b"Authorization: Bearer " + value

    assert status(gate(), CHAT, line) in (400, 401)


# --- repeated header sections, which are parsed once and admitted each time


def gate_over(ring: KeyRing) -> Gate:
    return Gate(
        ring,
        Allowances(lambda: 0.0, Spending(lambda: 0.0)),
        admin_key=None,
        metrics_key=None,
        operators_elsewhere=False,
    )


def key_name(at: Gate, head: RequestHead) -> str | None:
    """The key's name, as a connection asks for each request; ``None`` when refused."""
    try:
        head.access = at.admit(head)
    except ClientError:
        return None
    return name(head.access)


def test_an_expired_key_is_refused_even_if_it_passed_before() -> None:
    now = [0.0]
    key = ApiKey("alice", digest_of(ALICE.encode()), expires_at=10.0)
    at, head = gate_over(KeyRing([key], None, lambda: now[0])), head_of(CHAT, f"X-Api-Key: {ALICE}")
    assert [key_name(at, head), key_name(at, head)] == ["alice", "alice"]

    now[0] = 10.0

    assert [key_name(at, head), key_name(at, head)] == [None, None]


def test_a_removed_key_is_refused_even_if_it_passed_before(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, secret: {ALICE}}}]")
    ring = KeyRing([], file, lambda: 0.0)
    at, head = gate_over(ring), head_of(CHAT, f"X-Api-Key: {ALICE}")
    assert [key_name(at, head), key_name(at, head)] == ["alice", "alice"]

    for content, who in ((f"[{{name: bob, secret: {ALICE}}}]", "bob"), (f"[{{name: bob, secret: {BOB}}}]", None)):
        file.write_text(f"keys: {content}")
        ring.reload_if_changed()

        assert [key_name(at, head), key_name(at, head)] == [who, who]


def test_changed_limits_apply_to_a_key_that_passed_before(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, secret: {ALICE}}}]")
    ring = KeyRing([], file, lambda: 0.0)
    at, head = gate_over(ring), head_of(CHAT, f"X-Api-Key: {ALICE}")
    assert key_name(at, head) == "alice"

    file.write_text(f"keys: [{{name: alice, secret: {ALICE}, models: [m], concurrent_requests: 3}}]")
    ring.reload_if_changed()

    access = at.admit(head)
    assert isinstance(access, Access)
    assert not access.permits("other")
    assert access.allowance.key.concurrent_requests == 3


# --- operator keys


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/keys", "/admin/../v1/models", "/admin//", "/admin?x"])
@pytest.mark.parametrize("keys", [True, False])
def test_admin_is_disabled_without_an_admin_key(path: str, *, keys: bool) -> None:
    for lines in ([], [f"X-Api-Key: {ALICE}"], ["Authorization: Bearer None"], ["X-Api-Key:"]):
        for method in ("GET", "POST", "OPTIONS"):
            assert status(gate(keys=keys), f"{method} {path}", *lines) == 404


@pytest.mark.parametrize("keys", [True, False])
def test_admin_accepts_only_the_admin_key(*, keys: bool) -> None:
    at = gate(keys=keys, admin=ADMIN, metrics=METRICS)
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        for secret in (ALICE, METRICS, f"{ADMIN}x", ADMIN[:-1]):
            assert status(at, f"{method} /admin/keys", f"X-Api-Key: {secret}") == 401
        assert status(at, f"{method} /admin/keys", "Access-Control-Request-Method: GET") == 401
        assert status(at, f"{method} /admin/keys", f"Authorization: Bearer {ADMIN}") == 200


def test_an_operator_key_is_not_a_client_key() -> None:
    at = gate(admin=ADMIN, metrics=METRICS)

    assert status(at, CHAT, f"X-Api-Key: {ADMIN}") == 401
    assert status(at, CHAT, f"X-Api-Key: {METRICS}") == 401


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_metrics_need_the_metrics_key_if_there_is_one(method: str, *, keys: bool) -> None:
    at = gate(keys=keys, metrics=METRICS)

    assert status(at, f"{method} /metrics") == 401
    assert status(at, f"{method} /metrics?x=1") == 401
    assert status(at, f"{method} /metrics", f"X-Api-Key: {ALICE}") == 401
    assert status(at, f"{method} /metrics", f"Authorization: Bearer {METRICS}") == 200
    assert status(gate(keys=keys), f"{method} /metrics") == 200


def test_a_post_to_metrics_is_a_client_request() -> None:
    at = gate(metrics=METRICS)

    assert status(at, "POST /metrics", f"X-Api-Key: {METRICS}") == 401
    assert name(admitted(at, "POST /metrics", f"X-Api-Key: {ALICE}")) == "alice"


@pytest.mark.parametrize("path", ["/metrics", "/admin", "/admin/keys"])
def test_operator_paths_move_to_the_admin_port_if_there_is_one(path: str) -> None:
    at = gate(admin=ADMIN, metrics=METRICS, operators_elsewhere=True)

    for secret in (ADMIN, METRICS, ALICE):
        assert status(at, f"GET {path}", f"X-Api-Key: {secret}") == 404


@pytest.mark.parametrize(
    ("request_line", "secret", "expected"),
    [
        ("GET /admin/keys", ADMIN, 200),
        ("GET /admin/keys", METRICS, 401),
        ("GET /admin/keys", ALICE, 401),
        ("GET /admin/keys", "", 401),
        ("GET /metrics", METRICS, 200),
        ("GET /metrics", ADMIN, 401),
        ("GET /health", "", 200),
        (CHAT, ALICE, 404),
        (CHAT, ADMIN, 404),
        ("GET /v1/models", ALICE, 404),
        ("POST /health", ADMIN, 404),
        ("OPTIONS *", ADMIN, 404),
    ],
)
def test_the_admin_port_reaches_no_engine(request_line: str, secret: str, expected: int) -> None:
    at = gate(admin=ADMIN, metrics=METRICS, operators_elsewhere=True)

    assert operators_status(at, request_line, f"X-Api-Key: {secret}") == expected


# --- models


@pytest.mark.parametrize(
    ("models", "model", "permitted"),
    [
        (None, "m", True),
        (None, None, True),
        ({"m"}, "m", True),
        ({"m"}, "M", False),
        ({"m"}, "m ", False),
        ({"m"}, "", False),
        ({"m"}, None, False),
        (set(), "m", False),
    ],
)
def test_a_key_with_models_permits_only_these_by_name(
    models: set[str] | None, model: str | None, *, permitted: bool
) -> None:
    key = ApiKey("a", b"", models=None if models is None else frozenset(models))

    assert Access(key, Allowances(lambda: 0.0, Spending(lambda: 0.0)).of(key)).permits(model) is permitted


@pytest.mark.parametrize("request_line", ["PUT /admin/announced", "DELETE /admin/announced"])
def test_announcements_need_their_own_key_or_that_of_operators(request_line: str) -> None:
    both = gate(admin=ADMIN, announce=ANNOUNCE)
    for key, expected in ((ANNOUNCE, 200), (ADMIN, 200), (ALICE, 401), (METRICS, 401)):
        assert status(both, request_line, f"Authorization: Bearer {key}") == expected
    assert status(both, request_line) == 401
    assert status(gate(announce=ANNOUNCE), request_line, f"Authorization: Bearer {ANNOUNCE}") == 200
    assert status(gate(admin=ADMIN), request_line, f"Authorization: Bearer {ADMIN}") == 404
    elsewhere = gate(announce=ANNOUNCE, operators_elsewhere=True)
    assert status(elsewhere, request_line, f"Authorization: Bearer {ANNOUNCE}") == 404


@pytest.mark.parametrize("path", ["/admin/backends", "/admin/announcedx", "/admin/keys", "/admin"])
def test_the_key_for_announcements_opens_no_other_path(path: str) -> None:
    both = gate(admin=ADMIN, announce=ANNOUNCE)
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert status(both, f"{method} {path}", f"Authorization: Bearer {ANNOUNCE}") == 401
