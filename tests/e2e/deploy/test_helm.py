"""deploy/helm: linted and rendered by Helm's library, checked against Kubernetes' schemas."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pianissimo.cli import app

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "pianissimo"
KUBERNETES = "1.29"
FULL: dict[str, Any] = {
    "existingSecret": "keys",
    "models": ["en=/models/en", "embedded-commands"],
    "pull": ["one", "two"],
    "seats": 100,
    "resumeSeats": 0,
    "state": {"enabled": True},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "env": {"PIANISSIMO_IDLE_SECONDS": 60},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}
OTHERS_KINDS = {"ScaledObject", "ServiceMonitor"}
"""Kinds whose schemas belong to KEDA and to the Prometheus operator."""

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every object by its kind."""
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="prod", namespace="asr")
    documents = [
        document
        for name, text in texts.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def test_helm_finds_no_fault() -> None:
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [m["error"] for m in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [{"insecure": True}, FULL], ids=["least", "full"])
def test_objects_fit_the_schemas_of_kubernetes(values: dict[str, Any]) -> None:
    objects = rendered(values)
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= objects.keys()
    for kind in objects.keys() - OTHERS_KINDS:
        kubernetes_validate.validate(objects[kind], KUBERNETES, strict=True)
    if values is FULL:
        assert objects.keys() >= {*OTHERS_KINDS, "PersistentVolumeClaim"}


def test_values_are_checked() -> None:
    for wrong in ({}, {"insecure": True, "seat": 3}, {"insecure": True, "seats": 0}):
        with pytest.raises(helm.HelmError):
            rendered(wrong)


def test_a_pod_has_time_to_end_and_probes_that_fit() -> None:
    pod = rendered({**FULL, "drainSeconds": 60})["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] >= 60 + 5 + 20
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert pod["enableServiceLinks"] is False  # it would set PIANISSIMO_PORT


def test_variables_are_options_of_the_command() -> None:
    import typer

    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {f"PIANISSIMO_{param.name.upper()}" for param in command.params}
    pod = rendered({**FULL, "insecure": True})["Deployment"]["spec"]["template"]["spec"]
    names = {variable["name"] for variable in pod["containers"][0]["env"]}
    mentioned = set(re.findall(r"PIANISSIMO_[A-Z_]+", (CHART / "values.yaml").read_text()))
    assert len(names) > 10 and names | mentioned <= known


def test_scaling_counts_seats() -> None:
    (trigger,) = rendered(FULL)["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == "70"
    assert (
        'pianissimo_seats_used{namespace="asr",pod=~"prod-pianissimo-.*"}'
        in (trigger["metadata"]["query"])
    )
    assert "replicas" not in rendered(FULL)["Deployment"]["spec"]
    assert rendered({"insecure": True})["Deployment"]["spec"]["replicas"] == 2
