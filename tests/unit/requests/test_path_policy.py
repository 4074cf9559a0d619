import pytest

from inference_engine_proxy_server.config.settings import PathRule, Settings
from inference_engine_proxy_server.requests.path_policy import PathPolicy

POLICY = PathPolicy(
    [
        PathRule(None, "/sleep", is_prefix=False),
        PathRule("POST", "/props", is_prefix=False),
        PathRule("POST", "/slots/", is_prefix=True),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "blocked"),
    [
        ("POST", "/sleep", True),
        ("GET", "/sleep", True),
        ("POST", "/props", True),
        ("GET", "/props", False),
        ("POST", "/slots/3", True),
        ("GET", "/slots/3", False),
        ("POST", "/slots", False),
        ("POST", "/sleepy", False),
        ("POST", "/v1/chat/completions", False),
        ("POST", "/%73leep", True),
        ("POST", "/%2573leep", True),
        ("POST", "//sleep", True),
        ("POST", "/sleep/", True),
        ("POST", "/./sleep", True),
        ("POST", "/x/../sleep", True),
        ("POST", "/x/%2e%2e/sleep", True),
        ("POST", "/x%2f..%2fsleep", True),
        ("POST", "/\\sleep", True),
        ("POST", "/slots//3", True),
        ("POST", "/slots/1\\..\\..\\x", True),
        ("POST", "/slots/1%5c..%5c..%5cx", True),
        ("POST", "/slots/1%252f..%252fx", True),
        ("POST", "/slots/1/../../x", True),
        ("POST", "/v1/%7Euser/", False),
    ],
)
def test_a_rule_applies_to_every_spelling_of_a_path(method: str, path: str, blocked: bool) -> None:
    assert POLICY.blocks(method, path) is blocked


def test_without_rules_nothing_is_blocked() -> None:
    assert not PathPolicy([]).blocks("POST", "/sleep")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/slots"),
        ("GET", "/props"),
        ("POST", "/tokenize"),
        ("GET", "/models"),
        ("POST", "/api/chat"),
        ("GET", "/api/tags"),
        ("GET", "/api/v1/models"),
        ("POST", "/api/v1/chat"),
        ("GET", "/v1/model"),
        ("POST", "/api/v1/generate"),
        ("POST", "/api/extra/tokencount"),
        ("GET", "/v1/loras"),
        ("GET", "/v1/models/m"),
        ("POST", "/generate"),
        ("POST", "/v1/responses"),
        ("GET", "/model_info"),
        ("GET", "/api/ps"),
        ("GET", "/load"),
    ],
)
def test_the_default_rules_allow_other_paths(method: str, path: str) -> None:
    assert not PathPolicy(Settings().blocked_paths).blocks(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sleep"), ("POST", "/wake_up"), ("POST", "/pause"), ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"), ("POST", "/v1/load_lora_adapter"), ("POST", "/slots/0"), ("POST", "/props"),
        ("POST", "/models/load"), ("POST", "/models/unload"), ("POST", "/lora-adapters"), ("GET", "/tools"),
        ("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:0"),
        ("POST", "/api/v1/models/load"), ("POST", "/api/v1/models/unload"), ("POST", "/api/admin/reload_config"),
        ("POST", "/api/extra/abort"), ("GET", "/api/extra/generate/check"), ("POST", "/v1/model/load"),
        ("POST", "/v1/model/embedding/unload"), ("POST", "/v1/lora/load"), ("POST", "/v1/sampling/override/switch"),
        ("GET", "/flush_cache"), ("POST", "/update_weights_from_disk"), ("PUT", "/hicache/storage-backend"),
        ("GET", "/terminate"), ("POST", "/wakeup"), ("POST", "/release_memory"), ("POST", "/v1/models/m/unload"),
        ("DELETE", "/v1/models/org/model"), ("POST", "/api/ps/org/model"), ("DELETE", "/api/ps/org/model"),
        ("POST", "/load"), ("POST", "/load_model"), ("POST", "/reset"),
    ],
)  # fmt: skip
def test_the_default_rules_block_control_endpoints(method: str, path: str) -> None:
    assert PathPolicy(Settings().blocked_paths).blocks(method, path)
