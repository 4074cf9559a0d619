import pytest

from inference_engine_proxy_server.core.retry import NextAttempt, next_attempt
from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendError,
    BackendTimeout,
    BackendUnreachable,
    InvalidReply,
)

UNREACHABLE = BackendUnreachable("")
BROKE = BackendBroke("")
STALE = BackendBroke("", on_reused_connection=True)
CHAT = ("POST", "/v1/chat/completions")
STORED = ("POST", "/v1/responses")


@pytest.mark.parametrize(
    ("error", "request_line", "begun", "replays", "expected"),
    [
        pytest.param(UNREACHABLE, CHAT, False, 0, NextAttempt.OTHER_BACKEND, id="nothing was sent"),
        pytest.param(UNREACHABLE, STORED, False, 0, NextAttempt.OTHER_BACKEND, id="nothing was sent, any path"),
        pytest.param(
            UNREACHABLE, CHAT, False, 7, NextAttempt.OTHER_BACKEND, id="nothing was sent, any number of times"
        ),
        pytest.param(BROKE, CHAT, False, 0, NextAttempt.OTHER_BACKEND, id="died with the request"),
        pytest.param(BROKE, CHAT, False, 1, NextAttempt.NONE, id="a prompt that kills engines kills two at most"),
        pytest.param(BROKE, STORED, False, 0, NextAttempt.NONE, id="may have been stored"),
        pytest.param(BROKE, ("POST", "/v1/files"), False, 0, NextAttempt.NONE, id="unknown POST"),
        pytest.param(BROKE, ("GET", "/anything"), False, 0, NextAttempt.OTHER_BACKEND, id="GET is idempotent"),
        pytest.param(STALE, CHAT, False, 0, NextAttempt.SAME_ON_FRESH_CONNECTION, id="idle connection had gone"),
        pytest.param(STALE, STORED, False, 0, NextAttempt.NONE, id="idle connection had gone, may have been stored"),
        pytest.param(BROKE, CHAT, True, 0, NextAttempt.NONE, id="reply begun"),
        pytest.param(STALE, CHAT, True, 0, NextAttempt.NONE, id="reply begun on a reused connection"),
        pytest.param(BackendTimeout(""), CHAT, False, 0, NextAttempt.NONE, id="slow is not dead"),
        pytest.param(InvalidReply(""), CHAT, False, 0, NextAttempt.NONE, id="not HTTP"),
    ],
)
def test_what_may_be_sent_again(
    error: BackendError, request_line: tuple[str, str], begun: bool, replays: int, expected: NextAttempt
) -> None:
    method, path = request_line
    assert next_attempt(error, method=method, path=path, reply_begun=begun, replays=replays) is expected
