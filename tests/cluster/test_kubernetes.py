"""The files in k8s/ against the schema of KubeRay's resources (`kuberay.json`, written after its Go
types), their pods and secrets against Kubernetes' own, and all against what the jobs ask for."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ageray import cluster, config
from ageray.cluster import resources
from ageray.commands import score, train
from ageray.serve.settings import Service

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(__file__).parent / "kuberay.json").read_text())
FILES = ["cluster", "score", "train", "serve"]
KUBERNETES = "1.34"  # files are for clusters that are some releases old, too


def read(name: str) -> dict[str, Any]:
    [content] = yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text())
    return dict(content)


def ray_cluster(name: str) -> dict[str, Any]:
    """The cluster in a file."""
    spec: dict[str, Any] = read(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(name: str) -> list[dict[str, Any]]:
    spec = ray_cluster(name)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def nodes(name: str) -> list[dict[str, float]]:
    """What Ray sees of the nodes that a job's cluster always has."""
    rows: list[dict[str, float]] = [{"CPU": 0}]
    for group in ray_cluster(name)["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        node = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        if "on_demand" in group["rayStartParams"].get("resources", ""):
            node[cluster.ON_DEMAND] = 1.0
        rows += [dict(node) for _ in range(group["minReplicas"])]
    return rows


@pytest.mark.parametrize("name", FILES)
def test_files_are_what_kuberay_takes(name: str) -> None:
    content = read(name)
    jsonschema.validate(content, SCHEMA | {"$ref": f"#/$defs/{content['kind']}"})


@pytest.mark.parametrize("name", FILES)
def test_the_schema_refuses_a_misspelt_key(name: str) -> None:
    content = read(name)
    spec = content["spec"].get("rayClusterSpec") or content["spec"].get("rayClusterConfig") or content["spec"]
    spec["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA | {"$ref": f"#/$defs/{content['kind']}"})


def pod_templates(names: list[str]) -> dict[str, Any]:
    """The pods of these files as a resource of Kubernetes' own."""
    items = []
    for name in names:
        spec = ray_cluster(name)
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            items.append({"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]})
    return {"apiVersion": "v1", "kind": "PodTemplateList", "items": items}


def test_pods_and_secrets_are_what_kubernetes_takes() -> None:
    """By the whole schema of Kubernetes, which refuses unknown keys here (`strict`)."""
    templates = pod_templates(FILES)
    kubernetes_validate.validate(templates, KUBERNETES, strict=True)
    for secret in yaml.safe_load_all((ROOT / "k8s" / "secrets.yaml").read_text()):
        kubernetes_validate.validate(secret, KUBERNETES, strict=True)
    container = templates["items"][-1]["template"]["spec"]["containers"][0]
    container["readinessProbe"]["exec"]["comand"] = container["readinessProbe"]["exec"].pop("command")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(templates, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", FILES)
def test_ray_is_the_installed_one_and_asks_for_a_token(name: str) -> None:
    spec = ray_cluster(name)
    assert spec["rayVersion"].rpartition(".")[0] == version("ray").rpartition(".")[0]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(name):
        [container] = pod["containers"]
        assert {"secretRef": {"name": "ageray-store"}} in container["envFrom"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", FILES)
def test_gpu_pods_tolerate_their_taint_and_spot_is_never_on_demand(name: str) -> None:
    for group in ray_cluster(name)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        limits = pod["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in tolerated) == ("nvidia.com/gpu" in limits)
        assert ("spot" in tolerated) == (group["groupName"] == "spot")
        if group["groupName"] == "spot":
            assert "resources" not in group["rayStartParams"]


def test_the_training_fits_its_cluster_and_the_scoring_its(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nodes that the files always start; the commands are ones."""
    words = shlex.split(read("train")["spec"]["entrypoint"])
    assert words[:2] == ["ageray", "train"]
    arguments = train.parser().parse_args(words[2:])
    scale = config.load(*config.parse_arguments(arguments.words)).scale
    monkeypatch.setattr(resources, "nodes", lambda: nodes("train"))
    needs = {"CPU": scale.cpus_per_worker, "GPU": 1.0, cluster.ON_DEMAND: 0.001}
    assert isinstance(scale.workers, int)
    cluster.check_fits("k8s/train.yaml", scale.workers, needs, beside=1)
    words = shlex.split(read("score")["spec"]["entrypoint"])
    assert words[:2] == ["ageray", "score"]
    settings = [word for word in score.parser().parse_intermixed_args(words[2:]).words if "=" in word]
    scale = config.load([], settings).scale
    monkeypatch.setattr(resources, "nodes", lambda: nodes("score"))
    gpus = sum(node.get("GPU", 0) for node in nodes("score"))
    cluster.check_fits("k8s/score.yaml", int(gpus), {"CPU": scale.cpus_per_worker, "GPU": 1.0}, beside=1)


def test_the_service_has_settings_of_ours_keys_and_probes() -> None:
    content = yaml.safe_load(read("serve")["spec"]["serveConfigV2"])
    [application] = content["applications"]
    Service.model_validate(application["args"])
    assert application["import_path"] == "ageray.serve.app:app"
    assert content["http_options"]["host"] == "0.0.0.0"
    for pod in pods("serve"):
        assert {"secretRef": {"name": "ageray-api-keys"}} in pod["containers"][0]["envFrom"]
    for pod in pods("serve")[1:]:
        assert "readinessProbe" in pod["containers"][0]


def test_every_port_that_is_scraped_is_there() -> None:
    monitors = list(yaml.safe_load_all((ROOT / "k8s" / "monitor.yaml").read_text()))
    scraped = set()
    for monitor in monitors:
        scraped |= {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped == {"metrics", "serve"}
    for name in FILES:
        for pod in pods(name):
            assert "metrics" in {port["name"] for port in pod["containers"][0]["ports"]}
    assert "serve" in {port["name"] for port in pods("serve")[1]["containers"][0]["ports"]}


def test_secrets_hold_no_value_but_the_region() -> None:
    for secret in yaml.safe_load_all((ROOT / "k8s" / "secrets.yaml").read_text()):
        values = {name: value for name, value in secret["stringData"].items() if value}
        assert set(values) <= {"AWS_REGION"}
