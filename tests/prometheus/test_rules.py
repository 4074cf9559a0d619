"""The rules in monitoring/, tried by promtool on invented series."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from support.monitoring import MONITORING, RULES, rules

OF_JOB = {"job": "inference-proxy"}
AT_ONE = {**OF_JOB, "instance": "one:8888"}
A, B = "http://a", "http://b"

Series = Mapping[str, str]
"""Values in promtool's notation, by series. ``P:`` is the prefix of the proxy; the labels of ``AT_ONE`` are added."""


class Case(NamedTuple):
    """What series make an alert fire.

    Attributes:
        alert: its name.
        series: make it fire at ``minute``.
        labels: of the alert, without its severity.
        summary: of the alert.
        quiet: the same series with these changes do not.
    """

    alert: str
    series: Series
    minute: int
    labels: Mapping[str, str]
    summary: str
    quiet: Series


def case(
    alert: str,
    series: Series,
    quiet: Series,
    summary: str,
    *,
    minute: int = 30,
    labels: Mapping[str, str] = OF_JOB,
) -> Any:
    return pytest.param(Case(alert, series, minute, labels, summary, quiet), id=alert)


CASES = [
    case(
        "InferenceProxyDown",
        {'up{job="inference-proxy", instance="one:8888"}': "0x60"},
        {'up{job="inference-proxy", instance="one:8888"}': "1x60"},
        "The proxy at one:8888 does not answer Prometheus.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyNoBackendLive",
        {"P:backend_live": "1x5 0x60", f'P:backend_live{{backend="{B}"}}': "0x60"},
        {f'P:backend_live{{backend="{B}"}}': "1x60"},
        "No backend works: all requests fail.",
    ),
    case(
        "InferenceProxyNoBackendReady",
        {f'P:backend_ready{{backend="{A}"}}': "0x60", f'P:backend_live{{backend="{A}"}}': "1x60"},
        {f'P:backend_ready{{backend="{A}"}}': "0 1 0 0 0 1 0 0 1 0 0 0 1 0 0 0 1 0 0 1 0 0 0 1 0 0 0 1 0 0 0 0 0 0"},
        "Backends work, and none takes new requests: all are busy, suspect or drained.",
    ),
    case(
        "InferenceProxyBackendDown",
        {
            f'P:backend_live{{backend="{A}", worker="0"}}': "0x60",
            f'P:backend_live{{backend="{A}", worker="1"}}': "0x60",
        },
        {f'P:backend_draining{{backend="{A}"}}': "1x60"},
        f"Backend {A} is down, or does not finish its start.",
        labels={**OF_JOB, "backend": A},
    ),
    case(
        "InferenceProxyBackendStateStale",
        {
            f'P:backend_state_timestamp_seconds{{backend="{A}"}}': "600x60",
            f'P:backend_state_timestamp_seconds{{backend="{B}"}}': "0x60",
        },
        {f'P:backend_state_timestamp_seconds{{backend="{A}"}}': "0+60x60"},
        f"Backend {A} has not reported its state for 20m 0s.",
        labels={**OF_JOB, "backend": A},
    ),
    case(
        "InferenceProxyQueueGrows",
        {"P:queue_requests": "0+1x60"},
        {"P:queue_requests": "60-1x60"},
        "More and more requests wait for a free backend.",
    ),
    case(
        "InferenceProxyQueueRefuses",
        {'P:queue_refusals_total{reason="full"}': "0+6x60", 'P:queue_refusals_total{reason="timeout"}': "5x60"},
        {'P:queue_refusals_total{reason="full"}': "60x60"},
        "Requests are rejected because the queue is full, or because they waited too long (full).",
        labels={**OF_JOB, "reason": "full"},
    ),
    case(
        "InferenceProxyTimeToFirstTokenHigh",
        {
            'P:time_to_first_token_seconds_bucket{model="m", le="10"}': "0+90x60",
            'P:time_to_first_token_seconds_bucket{model="m", le="20"}': "0+100x60",
            'P:time_to_first_token_seconds_bucket{model="m", le="+Inf"}': "0+100x60",
            'P:time_to_first_token_seconds_bucket{model="quick", le="10"}': "0+100x60",
            'P:time_to_first_token_seconds_bucket{model="quick", le="+Inf"}': "0+100x60",
        },
        {'P:time_to_first_token_seconds_bucket{model="m", le="10"}': "0+99x60"},
        "One in twenty streams of m begins only after 15s.",
        labels={**OF_JOB, "model": "m"},
    ),
    case(
        "InferenceProxySheds",
        {'P:shed_total{reason="memory"}': "0+1x60", 'P:shed_total{reason="requests"}': "0x60"},
        {'P:shed_total{reason="memory"}': "1x60"},
        "The proxy itself is at a limit (memory), and rejects requests.",
        labels={**OF_JOB, "reason": "memory"},
    ),
    case(
        "InferenceProxyErrorRatioHigh",
        {'P:requests_total{code="200"}': "0+90x60", 'P:requests_total{code="503"}': "0+10x60"},
        {'P:requests_total{code="503"}': "0+1x60", 'P:requests_total{code="499"}': "0+50x60"},
        "10% of the requests fail with a status of 5xx.",
    ),
    case(
        "InferenceProxyStreamsBreak",
        {'P:stream_aborts_total{side="backend"}': "0+1x60"},
        {'P:stream_aborts_total{side="backend"}': "9x60", 'P:stream_aborts_total{side="client"}': "0+9x60"},
        "Replies break off, and are not resumed.",
    ),
    case(
        "InferenceProxyReplicasDiffer",
        {f'P:backend_differences{{backend="{A}",aspect="weights"}}': "1x60"},
        {
            f'P:backend_differences{{backend="{A}",aspect="weights"}}': "1x5 stale",
            f'P:backend_differences{{backend="{A}",aspect="slots"}}': "1x60",
        },
        f"{A} differs from other backends of the same model in: weights.",
        labels={**OF_JOB, "backend": A, "aspect": "weights"},
    ),
    case(
        "InferenceProxyReloadFailed",
        {'P:config_reloads_total{result="failure"}': "0x20 1x40"},
        {'P:config_reloads_total{result="failure"}': "1x60", 'P:config_reloads_total{result="success"}': "0+1x60"},
        "The changed settings of one:8888 are invalid: the previous ones stay in force.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyClockSkew",
        {f'P:backend_state_timestamp_seconds{{backend="{A}"}}': "90+60x60"},
        {f'P:backend_state_timestamp_seconds{{backend="{A}"}}': "5+60x60"},
        "The clock of one:8888 is 1m 30s ahead of Prometheus's.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyMemoryHigh",
        {"process_resident_memory_bytes": "900x60", "P:memory_limit_bytes": "1000x60"},
        {"process_resident_memory_bytes": "800x60"},
        "one:8888 uses 90% of its memory. At 95 %, it rejects requests.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyFilesHigh",
        {"process_open_fds": "900x60", "process_max_fds": "1000x60"},
        {"process_open_fds": "700x60"},
        "one:8888 has 90% of its files and connections open.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyEventLoopSlow",
        {"P:event_loop_lag_seconds": "0.2x60"},
        {"P:event_loop_lag_seconds": "0.2 0 0 0.2 0 0 0.2 0 0 0.2 0x60"},
        "one:8888 delays each request by 200ms: it needs more CPU, or more WORKERS.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyWorkerMissing",
        {'P:worker_up{worker="0"}': "1x60", 'P:worker_up{worker="1"}': "0x60"},
        {'P:worker_up{worker="1"}': "1x60"},
        "Worker 1 of one:8888 does not report.",
        labels={**AT_ONE, "worker": "1"},
    ),
    case(
        "InferenceProxyAccessLogLost",
        {"P:access_log_dropped_lines_total": "0x20 7x40"},
        {"P:access_log_dropped_lines_total": "7x60"},
        "one:8888 loses lines of its access log: nobody reads it, or the disk is full.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxyUsageNotWritten",
        {"P:usage_unwritten_requests": "0x5 3x60"},
        {"P:usage_unwritten_requests": "0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0 0 3 0"},
        "one:8888 cannot write USAGE_FILE: counts wait in memory.",
        labels=AT_ONE,
    ),
    case(
        "InferenceProxySharedStateAway",
        {"P:shared_state_available": "1x20 0x40"},
        {"P:shared_state_available": "0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0 0 1 0"},
        "one:8888 has no answer from the server of STATE_URL: limits and budgets are its own.",
        labels=AT_ONE,
    ),
]


def promtool(*arguments: str, text: str | None = None, folder: Path | None = None) -> None:
    """Run promtool; its complaints are the message of a failure."""
    ended = subprocess.run(
        ["promtool", *arguments], input=text, cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def with_labels(name: str) -> str:
    """``name`` as a series of one instance."""
    name, _, given = name.replace("P:", "inference_proxy_").partition("{")
    if name == "up":
        return f"{name}{{{given}"
    labels = ", ".join(f'{label}="{value}"' for label, value in AT_ONE.items())
    return f"{name}{{{labels}, {given}" if given else f"{name}{{{labels}}}"


def check_alert(folder: Path, name: str, series: Series, minute: int, expected: Sequence[Mapping[str, Any]]) -> None:
    test = {
        "interval": "1m",
        "input_series": [{"series": with_labels(one), "values": values} for one, values in series.items()],
        "alert_rule_test": [{"alertname": name, "eval_time": f"{minute}m", "exp_alerts": list(expected)}],
    }
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(one) for one in RULES], "tests": [test]}))
    promtool("test", "rules", str(file))


def test_promtool_finds_no_mistake_in_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", *map(str, RULES))


def test_the_example_configuration_is_valid() -> None:
    promtool("check", "config", "--lint-fatal", str(MONITORING / "prometheus.yml"))


def test_every_alert_is_tried() -> None:
    assert [one.values[0].alert for one in CASES] == [rule["alert"] for rule in rules() if "alert" in rule]


@pytest.mark.parametrize("case", CASES)
def test_the_alert_fires(tmp_path: Path, case: Case) -> None:
    [severity] = {rule["labels"]["severity"] for rule in rules() if rule.get("alert") == case.alert}
    fires = {"exp_labels": {**case.labels, "severity": severity}, "exp_annotations": {"summary": case.summary}}
    check_alert(tmp_path, case.alert, case.series, case.minute, [fires])


@pytest.mark.parametrize("case", CASES)
def test_the_alert_is_quiet(tmp_path: Path, case: Case) -> None:
    check_alert(tmp_path, case.alert, {**case.series, **case.quiet}, case.minute, [])


def test_a_fleet_without_backends_has_no_live_backend(tmp_path: Path) -> None:
    fires = {
        "exp_labels": {**OF_JOB, "severity": "critical"},
        "exp_annotations": {"summary": "No backend works: all requests fail."},
    }
    check_alert(tmp_path, "InferenceProxyNoBackendLive", {"P:build_info": "1x60"}, 10, [fires])
