"""Wrong values are refused, with a message that names the value and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kubernetes.chart import CHART, SETS, refusal

# The wrong values, and words that the message must have: the place, and what is allowed.
_BY_SCHEMA: list[tuple[str, tuple[str, ...]]] = [
    ("{replicas: 3}", ("replicas", "not allowed")),
    ("{replicaCount: two}", ("replicaCount", "integer")),
    ("{replicaCount: -1}", ("replicaCount", "0")),
    ("{image: {repository: ''}}", ("image.repository", "1")),
    ("{image: {repository: 'registry.example.com/proxy:1.0'}}", ("image.repository", "pattern")),
    ("{image: {tag: 1.0}}", ("image.tag", "string")),
    ("{image: {digest: sha256:abc}}", ("image.digest", "pattern")),
    ("{image: {pullPolicy: Sometimes}}", ("image.pullPolicy", "IfNotPresent")),
    ("{imagePullSecrets: [registry]}", ("imagePullSecrets.0", "object")),
    ("{backends: 'http://llm:8080'}", ("backends", "array")),
    ("{backends: ['llm:8080']}", ("backends.0", "pattern")),
    ("{backends: ['http://a', 'http://a']}", ("backends", "unique")),
    ("{fleet: {file: x}}", ("fleet", "file", "not allowed")),
    ("{settings: {QUEUE_TIMEOUT: 5}}", ("settings", "QUEUE_TIMEOUT", "not allowed")),
    ("{settings: {QUEUE_TIMEOUT_SECONDS: '5'}}", ("QUEUE_TIMEOUT_SECONDS", "number")),
    ("{settings: {QUEUE_TIMEOUT_SECONDS: 0}}", ("QUEUE_TIMEOUT_SECONDS", "0")),
    ("{settings: {BALANCING_POLICY: fastest}}", ("BALANCING_POLICY", "least_requests")),
    ("{settings: {TRACING: 'on'}}", ("TRACING", "boolean")),
    ("{settings: {WORKERS: 65}}", ("WORKERS", "64")),
    ("{settings: {ADMIN_KEY: secret}}", ("settings", "ADMIN_KEY", "not allowed")),
    ("{settings: {PORT: 80}}", ("settings", "PORT", "not allowed")),
    ("{port: 80}", ("port", "1024")),
    ("{adminPort: '8889'}", ("adminPort", "integer")),
    ("{secrets: {settings: {ADMIN: x}}}", ("secrets.settings", "ADMIN", "not allowed")),
    ("{secrets: {settings: {ADMIN_KEY: ''}}}", ("secrets.settings.ADMIN_KEY", "1")),
    ("{secrets: {existing: {settings: [LOG_LEVEL]}}}", ("secrets.existing.settings.0", "ADMIN_KEY")),
    ("{extraEnv: {A: b}}", ("extraEnv", "array")),
    ("{extraEnv: [{value: b}]}", ("extraEnv.0", "name")),
    ("{extraVolumeMounts: [{name: a, mountPath: data}]}", ("mountPath", "pattern")),
    ("{resources: {cpu: 1}}", ("resources", "cpu", "not allowed")),
    ("{strategy: {type: Rolling}}", ("strategy.type", "RollingUpdate")),
    ("{shutdown: {preStopSeconds: 5s}}", ("shutdown.preStopSeconds", "integer")),
    ("{probes: {readiness: {path: /health}}}", ("probes.readiness.path", "/readyz")),
    ("{probes: {liveness: {path: /readyz}}}", ("probes.liveness.path", "/livez")),
    ("{podLabels: {a: 1}}", ("podLabels.a", "string")),
    ("{topologySpread: {zones: Always}}", ("topologySpread.zones", "DoNotSchedule")),
    ("{podDisruptionBudget: {maxUnavailable: 0}}", ("podDisruptionBudget.maxUnavailable",)),
    ("{podDisruptionBudget: {minAvailable: 1}}", ("podDisruptionBudget", "minAvailable", "not allowed")),
    ("{autoscaling: {enabled: 'yes'}}", ("autoscaling.enabled", "boolean")),
    ("{keda: {prometheusAddress: 'prometheus:9090'}}", ("keda.prometheusAddress", "pattern")),
    ("{keda: {engines: [{name: a}]}}", ("keda.engines.0", "model")),
    ("{service: {type: Public}}", ("service.type", "LoadBalancer")),
    ("{service: {port: 0}}", ("service.port", "1")),
    ("{ingress: {controller: nginx}}", ("ingress.controller", "ingress-nginx")),
    ("{ingress: {hosts: []}}", ("ingress.hosts", "1")),
    ("{httpRoute: {requestTimeout: never}}", ("httpRoute.requestTimeout", "pattern")),
    ("{networkPolicy: {clients: {a: b}}}", ("networkPolicy.clients", "array")),
    ("{serviceMonitor: {interval: 15}}", ("serviceMonitor.interval", "string")),
    ("{serviceMonitor: {job: proxy}}", ("serviceMonitor.job", "pattern")),
    ("{grafanaDashboard: {labels: []}}", ("grafanaDashboard.labels", "object")),
]
_BY_CHECKS: list[tuple[str, str]] = [
    ("{backends: []}", "The proxy has no backends: set `backends`"),
    ("{fleet: {content: {models: {}}, existingConfigMap: fleet}}", "`fleet.content` and `fleet.existingConfigMap`"),
    ("{autoscaling: {enabled: true}, keda: {proxy: {enabled: true}}}", "two autoscalers would fight"),
    ("{autoscaling: {enabled: true, targetCPUUtilizationPercentage: null}}", "`autoscaling` has no target"),
    ("{autoscaling: {minReplicas: 11}}", "`autoscaling.minReplicas` (11) is above `autoscaling.maxReplicas` (10)"),
    ("{keda: {proxy: {minReplicas: 11}}}", "`keda.proxy.minReplicas` (11) is above"),
    ("{keda: {engines: [{name: a, model: m, requestsPerReplica: 1, minReplicas: 3, maxReplicas: 2}]}}",
     "`minReplicas` (3) of a is above `maxReplicas` (2)"),
    ("{keda: {engines: [{name: a, model: m, requestsPerReplica: 1, minReplicas: 0, maxReplicas: 2}]}}",
     "`fleet.content.models` must name its model m"),
    ("{fleet: {content: {models: {m: {}}}}, "
     "keda: {engines: [{name: a, model: m, requestsPerReplica: 1, minReplicas: 0, maxReplicas: 2}]}}",
     "`probes.readiness.path` must be /livez"),
    ("{secrets: {existing: {settings: [API_KEYS]}}}", "`secrets.existing.name` is missing"),
    ("{secrets: {existing: {name: s}}}", "list which settings the Secret s has"),
    ("{secrets: {settings: {ADMIN_KEY: a}, existing: {name: s, settings: [ADMIN_KEY]}}}", "ADMIN_KEY is in"),
    ("{secrets: {keysFile: {keys: []}, existing: {name: s, keysFile: k}}}", "`secrets.keysFile` and"),
    ("{adminPort: 8888}", "`port` and `adminPort` are both 8888"),
    ("{httpRoute: {enabled: true}}", "`httpRoute.parentRefs` is empty"),
]  # fmt: skip


def refused(values: str, folder: Path) -> str:
    file = folder / "values.yaml"
    file.write_text(values)
    assert yaml.safe_load(values)
    return refusal([file])


@pytest.mark.parametrize(("values", "words"), _BY_SCHEMA)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_allowed(
    values: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(values, tmp_path)
    assert "values don't meet the specifications of the schema" in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(("values", "words"), _BY_CHECKS)
def test_values_that_contradict_each_other_are_refused(values: str, words: str, tmp_path: Path) -> None:
    message = refused(values, tmp_path)
    assert words in message


@pytest.mark.parametrize("files", SETS.values(), ids=SETS)
def test_every_set_of_values_is_accepted(files: tuple[Path, ...]) -> None:
    assert refusal(files) == ""


def test_every_example_of_the_chart_is_a_set() -> None:
    tested = {file for files in SETS.values() for file in files}
    assert set((CHART / "examples").glob("*.yaml")) <= tested
