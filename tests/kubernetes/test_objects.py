"""The rendered objects fit together, and fit the program."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_engine_proxy_server.config.settings import Settings
from kubernetes.chart import SETS, Manifest, container_of, environment_of, of_kind, render
from kubernetes.generated import SECRETS

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text()
SETTINGS = {field.upper() for field in Settings.model_fields}
FOREIGN = {"OTEL_EXPORTER_OTLP_ENDPOINT", "STATE_URL"}  # of OpenTelemetry; a setting where shared state is built in


@pytest.fixture(params=list(SETS))
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(SETS[request.param])


def everything() -> list[Manifest]:
    return render(SETS["everything"])


def pod_of(manifests: list[Manifest]) -> Manifest:
    [deployment] = of_kind(manifests, "Deployment")
    template = deployment["spec"]["template"]
    assert isinstance(template, dict)
    return template


def selectors(manifests: list[Manifest]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each selector of pods of the proxy."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        match manifest["kind"]:
            case "Service":
                yield name, spec["selector"]
            case "PodDisruptionBudget" | "Deployment":
                yield name, spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                yield name, spec["podSelector"]["matchLabels"]
    for spread in pod_of(manifests)["spec"].get("topologySpreadConstraints", []):
        yield "topologySpreadConstraints", spread["labelSelector"]["matchLabels"]


def test_selectors_match_the_pods_of_the_proxy_and_not_that_of_the_test(manifests: list[Manifest]) -> None:
    labels = pod_of(manifests)["metadata"]["labels"]
    [test_pod] = of_kind(manifests, "Pod")
    found = list(selectors(manifests))
    assert len(found) >= 2
    for name, selector in found:
        assert selector.items() <= labels.items(), name
        assert not selector.items() <= test_pod["metadata"]["labels"].items(), name


def test_selectors_stay_the_same_when_the_version_changes(manifests: list[Manifest]) -> None:
    """A Deployment refuses another selector, and a Service must select old and new pods during an upgrade."""
    names = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
    assert [name for name, selector in selectors(manifests) if selector.keys() != names] == []


def test_two_releases_do_not_select_the_pods_of_each_other() -> None:
    one, other = (render((), release=name) for name in ("inference-proxy-eu", "inference-proxy-us"))
    labels = pod_of(other)["metadata"]["labels"]
    assert [name for name, selector in selectors(one) if selector.items() <= labels.items()] == []


def test_ports_that_objects_refer_to_exist(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
    services = {service["metadata"]["name"]: service["spec"]["ports"] for service in of_kind(manifests, "Service")}
    environment = environment_of(manifests)
    assert environment["PORT"] == str(numbers["http"])
    assert environment.get("ADMIN_PORT", "None") == str(numbers.get("admin"))
    assert {port["targetPort"] for ports in services.values() for port in ports} == set(numbers)
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "http"
    }
    for policy in of_kind(manifests, "NetworkPolicy"):
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(numbers)
    for ingress in of_kind(manifests, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                assert service["port"]["name"] in [port["name"] for port in services[service["name"]]]
    for route in of_kind(manifests, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                assert backend["port"] in [port["port"] for port in services[backend["name"]]]


@pytest.mark.parametrize("admin_port", ["null", "8889"])
def test_the_service_monitor_selects_one_service_and_its_port(admin_port: str) -> None:
    manifests = render((), "--set", f"adminPort={admin_port},serviceMonitor.enabled=true")
    [monitor] = of_kind(manifests, "ServiceMonitor")
    [endpoint] = monitor["spec"]["endpoints"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    [service] = [one for one in of_kind(manifests, "Service") if wanted <= one["metadata"]["labels"].items()]
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]


@pytest.mark.parametrize("release", ["inference-proxy", "inference-proxy-eu", "prod"])
def test_the_job_of_the_metrics_is_one_that_the_rules_expect(release: str) -> None:
    manifests = render(SETS["everything"], release=release)
    [monitor] = of_kind(manifests, "ServiceMonitor")
    [relabeling] = monitor["spec"]["endpoints"][0]["relabelings"]
    assert relabeling["targetLabel"] == "job"
    assert re.fullmatch("inference-proxy.*", relabeling["replacement"])
    rules = [
        rule
        for one in of_kind(manifests, "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert any('up{job=~"inference-proxy.*"}' in rule["expr"] for rule in rules)
    for scaled in of_kind(manifests, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            assert f'job="{relabeling["replacement"]}"' in trigger["metadata"]["query"]


def test_variables_are_settings_and_each_is_set_once(manifests: list[Manifest]) -> None:
    names = [variable["name"] for variable in container_of(manifests)["env"]]
    assert set(names) - SETTINGS <= FOREIGN
    assert len(names) == len(set(names))


def test_secrets_are_in_no_other_object(manifests: list[Manifest]) -> None:
    environment = container_of(manifests)["env"]
    assert [one["name"] for one in environment if one["name"] in SECRETS and "value" in one] == []
    values = [value for secret in of_kind(manifests, "Secret") for value in secret["stringData"].values()]
    others = yaml.dump([one for one in manifests if one["kind"] != "Secret"])
    assert [value for value in values if value in others] == []


def test_large_numbers_are_written_without_an_exponent() -> None:
    environment = environment_of(everything())
    assert environment["MAX_REQUEST_BODY_BYTES"] == "134217728"
    assert environment["DRAIN_GRACE_SECONDS"] == "7.5"
    assert environment["TRACING"] == "false"


@pytest.mark.parametrize(
    ("settings", "pre_stop", "seconds"),
    [({}, 5, 5 + 5 + 300 + 60), ({"DRAIN_GRACE_SECONDS": 0.5, "DRAIN_TIMEOUT_SECONDS": 600}, 10, 10 + 601 + 60)],
)
def test_kubernetes_waits_a_minute_longer_than_the_proxy_takes(
    settings: dict[str, float], pre_stop: int, seconds: int
) -> None:
    shutdown = {"preStopSeconds": pre_stop}
    manifests = render(
        (), "--set-json", f"settings={json.dumps(settings)}", "--set-json", f"shutdown={json.dumps(shutdown)}"
    )
    assert pod_of(manifests)["spec"]["terminationGracePeriodSeconds"] == seconds
    assert container_of(manifests)["lifecycle"]["preStop"] == {"sleep": {"seconds": pre_stop}}


def test_grace_period_is_above_the_sum_of_all_waits(manifests: list[Manifest]) -> None:
    environment, container = environment_of(manifests), container_of(manifests)
    pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})["seconds"]
    waits = [
        float(environment.get(name, Settings.model_fields[name.lower()].default))
        for name in ("DRAIN_GRACE_SECONDS", "DRAIN_TIMEOUT_SECONDS")
    ]
    assert pod_of(manifests)["spec"]["terminationGracePeriodSeconds"] >= pre_stop + sum(waits) + 60


def test_versions_of_kubernetes_without_the_action_sleep_get_a_command() -> None:
    manifests = render((), "--kube-version", "1.29.0")
    assert container_of(manifests)["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}


def test_a_pod_that_is_replaced_is_replaced_before_it_leaves() -> None:
    [deployment] = of_kind(render(), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("name", ["defaults", "everything", "restricted"])
def test_pods_satisfy_the_restricted_pod_security_standard(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, version of November 2026."""
    manifests = render(SETS[name])
    [test_pod] = of_kind(manifests, "Pod")
    for spec in (pod_of(manifests)["spec"], test_pod["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"].get("runAsUser") != 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
        allowed = {
            "configMap",
            "secret",
            "emptyDir",
            "persistentVolumeClaim",
            "projected",
            "downwardAPI",
            "csi",
            "ephemeral",
        }
        assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", []))
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_openshift_chooses_the_ids_of_users() -> None:
    context = pod_of(render(SETS["restricted"]))["spec"]["securityContext"]
    assert not context.keys() & {"runAsUser", "runAsGroup", "fsGroup"}


def test_queries_of_autoscalers_name_documented_metrics() -> None:
    manifests = everything() + render(SETS["high-availability"])
    queries = [
        trigger["metadata"]["query"]
        for scaled in of_kind(manifests, "ScaledObject")
        for trigger in scaled["spec"]["triggers"]
    ]
    [autoscaler] = of_kind(manifests, "HorizontalPodAutoscaler")
    queries += [
        metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if metric["type"] == "Pods"
    ]
    metrics = {name for query in queries for name in re.findall(r"inference_proxy_\w+", query)}
    assert len(metrics) >= 3
    assert [name for name in metrics if f"`{name}`" not in METRICS] == []


def test_autoscalers_have_the_replicas_to_themselves() -> None:
    for options in ("autoscaling.enabled=true", "keda.proxy.enabled=true"):
        manifests = render((), "--set", options)
        [deployment] = of_kind(manifests, "Deployment")
        assert "replicas" not in deployment["spec"]
        [scaler] = of_kind(manifests, "HorizontalPodAutoscaler") + of_kind(manifests, "ScaledObject")
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_an_ingress_waits_longer_than_the_proxy() -> None:
    for controller, name, value in (
        ("ingress-nginx", "nginx.ingress.kubernetes.io/proxy-read-timeout", "691"),
        ("f5-nginx", "nginx.org/proxy-read-timeout", "691s"),
    ):
        manifests = render((), "--set", f"ingress.enabled=true,ingress.controller={controller}")
        [ingress] = of_kind(manifests, "Ingress")
        annotations = ingress["metadata"]["annotations"]
        assert annotations[name] == value  # 30 s in the queue, two backends for 300 s each, and 61 s
        assert "67108864" in annotations.values()
    [ingress] = of_kind(everything(), "Ingress")
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-send-timeout"] == "900"


def test_a_changed_key_replaces_the_pods_and_a_changed_fleet_does_not() -> None:
    def annotations(option: str) -> Any:
        return pod_of(render(SETS["everything"], "--set", option))["metadata"]["annotations"]

    usual = annotations("replicaCount=2")
    assert annotations("fleet.content.models.gemma.strict=true") == usual
    assert annotations("secrets.settings.ADMIN_KEY=other-0123456789") != usual


@pytest.mark.parametrize("release", ["a", "a-very-long-name-of-a-release-with-fifty-three-letter"])
def test_names_and_labels_fit(release: str) -> None:
    manifests = render(SETS["everything"], release=release)
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for _, name in names), names
    labels = [value for one in manifests for value in one["metadata"].get("labels", {}).values()]
    assert all(re.fullmatch(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]?", value) for value in labels)
