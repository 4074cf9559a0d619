"""Each finding about settings appears, and disappears with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_engine_proxy_server.config.sources import load_settings
from inference_engine_proxy_server.doctor.settings_checks import check_settings, ignored_settings

KEYS = "a:0123456789abcdef"
FALLBACK = "models: {{m: {{fallbacks: [n], fallback_after_seconds: {}}}}}\n"


def found(tmp_path: Path, fleet_file: str = "settings: {}\n", **variables: str) -> list[tuple[str, str]]:
    """Code and subject of each finding."""
    (tmp_path / "fleet.yaml").write_text(fleet_file)
    environ = {"BACKENDS": "http://127.0.0.1:1", "CONFIG_FILE": str(tmp_path / "fleet.yaml"), **variables}
    loaded = load_settings(environ, tmp_path / ".env")
    return [(finding.code, finding.subject) for finding in (*ignored_settings(loaded), *check_settings(loaded))]


def test_defaults_are_fine(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "right", "code", "subject"),
    [
        ({"BACKENDZ": "x"}, {}, "setting_ignored", "environment"),
        ({"ACCESS_LOG_PROBES": "true", "ACCESS_LOG": "false"}, {"ACCESS_LOG_PROBES": "true"},
         "setting_without_effect", "ACCESS_LOG_PROBES"),
        ({"FORWARD_CLIENT_KEY": "true"}, {"FORWARD_CLIENT_KEY": "true", "API_KEYS": KEYS},
         "setting_without_effect", "FORWARD_CLIENT_KEY"),
        ({"PREFIX_INDEX_BYTES": "1000000"}, {"PREFIX_INDEX_BYTES": "1000000", "BALANCING_POLICY": "expected_time"},
         "setting_without_effect", "PREFIX_INDEX_BYTES"),
        ({"TIER_PENALTY_SECONDS": "1"}, {"TIER_PENALTY_SECONDS": "1", "BALANCING_POLICY": "expected_time"},
         "setting_without_effect", "TIER_PENALTY_SECONDS"),
        ({"STREAM_RESUME": "off", "STREAM_RESUME_COMMENTS": "true"}, {"STREAM_RESUME_COMMENTS": "true"},
         "setting_without_effect", "STREAM_RESUME_COMMENTS"),
        ({"FORWARD_CLIENT_KEY": "true", "API_KEYS": KEYS, "BACKEND_API_KEY": "k"},
         {"FORWARD_CLIENT_KEY": "true", "API_KEYS": KEYS}, "contradiction", "FORWARD_CLIENT_KEY"),
        ({"HOST": "::"}, {"HOST": "::", "API_KEYS": KEYS}, "no_api_keys", "HOST"),
        ({"REQUEST_TIMEOUT_SECONDS": "30"}, {"REQUEST_TIMEOUT_SECONDS": "31"},
         "timeouts_out_of_order", "REQUEST_TIMEOUT_SECONDS"),
        ({"FIRST_TOKEN_TIMEOUT_SECONDS": "301"}, {"FIRST_TOKEN_TIMEOUT_SECONDS": "300"},
         "timeouts_out_of_order", "BACKEND_TIMEOUT_SECONDS"),
        ({"SUSPECT_AFTER_SECONDS": "300"}, {"SUSPECT_AFTER_SECONDS": "299"},
         "timeouts_out_of_order", "BACKEND_TIMEOUT_SECONDS"),
        ({"BACKEND_IDLE_CONNECTION_SECONDS": "5"}, {"BACKEND_IDLE_CONNECTION_SECONDS": "4.5"},
         "timeouts_out_of_order", "BACKEND_IDLE_CONNECTION_SECONDS"),
        ({"TRUSTED_PROXIES": "private", "STREAM_HEARTBEAT_SECONDS": "0"}, {"STREAM_HEARTBEAT_SECONDS": "0"},
         "timeouts_out_of_order", "STREAM_HEARTBEAT_SECONDS"),
        ({"TRUSTED_PROXIES": "private", "CLIENT_KEEP_ALIVE_SECONDS": "60"},
         {"TRUSTED_PROXIES": "private", "CLIENT_KEEP_ALIVE_SECONDS": "61"},
         "timeouts_out_of_order", "CLIENT_KEEP_ALIVE_SECONDS"),
    ],
)  # fmt: skip
def test_a_finding_appears_and_disappears(
    tmp_path: Path, wrong: dict[str, str], right: dict[str, str], code: str, subject: str
) -> None:
    assert found(tmp_path, **wrong) == [(code, subject)]
    assert found(tmp_path, **right) == []


def test_a_fallback_must_come_before_the_end_of_the_wait(tmp_path: Path) -> None:
    assert found(tmp_path, FALLBACK.format(30)) == [("timeouts_out_of_order", "QUEUE_TIMEOUT_SECONDS")]
    assert found(tmp_path, FALLBACK.format(29)) == []


def test_the_shadow_policy_counts(tmp_path: Path) -> None:
    assert found(tmp_path, PREFIX_INDEX_BYTES="1000000", SHADOW_POLICY="rendezvous") == []
    assert found(tmp_path, TIER_PENALTY_SECONDS="1", SHADOW_POLICY="expected_time") == []
    unused = [("setting_without_effect", "TIER_PENALTY_SECONDS")]
    assert found(tmp_path, TIER_PENALTY_SECONDS="1", SHADOW_POLICY="rendezvous") == unused


def test_the_policy_of_a_model_counts(tmp_path: Path) -> None:
    fleet_file = "models: {m: {balancing_policy: expected_time}}\n"
    assert found(tmp_path, fleet_file, PREFIX_INDEX_BYTES="1000000") == []
