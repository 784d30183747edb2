"""Which clusters are joined, what they hold, and that cluster.yaml, configs/scale/ and what a job
uploads fit together.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from ageray import cluster, config
from ageray.cluster import resources
from ageray.errors import UserError
from ageray.experiment import Scale

ROOT = Path(__file__).resolve().parents[2]


def launched() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@contextmanager
def holding(patch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> Iterator[None]:
    """A cluster of nodes of other sizes than this machine's."""
    with patch.context() as within:
        within.setattr(resources, "nodes", lambda: list(nodes))
        yield


# --- which cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "program", "shown"),
    [
        ("http://10.0.0.1:8265", ["-m", "jobs.score"], "-m jobs.score"),
        ("https://ray.example.org", ["/venv/bin/ageray", "score"], "-m ageray score"),
    ],
)
def test_an_address_for_jobs_is_answered_with_the_command_to_give(
    address: str, program: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        sys, "orig_argv", ["/venv/bin/python", *program, "s3://b/some photos", "--out", "s3://b/out"]
    )
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        cluster.connect(Scale())
    job = f"python {shown} 's3://b/some photos' --out s3://b/out"
    command = f"ray job submit --address {address} --working-dir . -- {job}"
    assert (
        str(caught.value)
        == f"RAY_ADDRESS={address}: takes jobs and cannot be joined; submit the command: {command}"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("The current node timed out during startup. This could happen.", UserError),
        ("anything else", RuntimeError),
    ],
)
def test_a_start_that_takes_too_long_is_told(
    text: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def late(**_: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError(text)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(error) as caught:
        cluster.connect(Scale())
    assert "\n" not in str(caught.value)
    assert error is RuntimeError or str(caught.value).startswith(
        "Ray did not start within its 30 seconds, twice ("
    )
    assert tries == (1 if error is RuntimeError else 2)


LATE_ONCE = """
import ray
from ray._private import services, node
from ageray import cluster
from ageray.experiment import Scale

found, late, clock = services.get_node, [], node.time.monotonic


def get_node(*given):
    # the first node that starts is never found, and 31 seconds are soon over
    late[:1] = late[:1] or [given[1]]
    if given[1] == late[0]:
        node.time.monotonic = lambda: clock() + 31 * len(late)
        late.append(None)
        raise RuntimeError("not there yet")
    node.time.monotonic = clock
    return found(*given)


services.get_node = get_node
cluster.connect(Scale(progress=False, local_cpus=1, object_store_mib=80))
print(len(late) > 1, ray.get(ray.remote(lambda: 7).remote()))
"""


def test_a_start_that_takes_too_long_is_tried_again_beside_what_is_left_of_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT)
    }
    ended = subprocess.run(
        [sys.executable, "-c", LATE_ONCE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1] == "True 7"


def test_a_head_node_that_is_lost_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real socket stands for its control service."""
    connect = importlib.import_module("ageray.cluster.connect")  # the package has a function of this name
    monkeypatch.setattr(connect, "_HEAD_PERIOD", 0.02)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        connect._watch_head(address)
        time.sleep(0.3)
        assert capsys.readouterr().err == ""
    [thread] = [each for each in threading.enumerate() if each.name == "head"]
    thread.join(5)
    assert capsys.readouterr().err.startswith(f"\nnote: the cluster's head node ({address}) does not answer")


def test_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(
        UserError, match=r"Ray Client cannot carry these commands.*ray job submit --address http://HEAD:8265"
    ) as caught:
        cluster.connect(Scale())
    assert "\n" not in str(caught.value)


# --- what fits -----------------------------------------------------------------------------------


def test_what_fits_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(monkeypatch, {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}, {"CPU": 1}):
        cluster.check_fits("scale.workers=8", 8, {"CPU": 2, "GPU": 1}, beside=1)
        cluster.check_fits("scale.parallel_trainings=16", 16, {"CPU": 1, "GPU": 0.5})
        cluster.check_fits("scale.workers=1", 1, {"CPU": 0.1, "GPU": 0})


@pytest.mark.parametrize(
    ("workers", "needs", "beside", "text"),
    [
        (
            9,
            {"CPU": 1, "GPU": 1},
            0,
            "9 of 1 CPU and 1 GPU do not fit; the cluster's 3 nodes hold 8 at most; lower it or add nodes",
        ),
        (
            1,
            {"CPU": 9, "GPU": 0},
            0,
            "1 of 9 CPU do not fit; the cluster's 3 nodes hold 0 at most; lower it or add nodes",
        ),
        (
            2,
            {"CPU": 5, "GPU": 4},
            8,
            "2 of 5 CPU and 4 GPU leave less than 8 of 17 logical CPUs to read data; lower it or add nodes",
        ),
        (
            1,
            {"CPU": 1, "GPU": 8},
            0,
            "1 of 1 CPU and 8 GPU do not fit; the cluster's 3 nodes hold 0 at most; lower it or add nodes",
        ),
        (
            1,
            {"CPU": 1, "on_demand": 0.001},
            0,
            "1 of 1 CPU do not fit on nodes that offer on_demand; "
            "the cluster's 3 nodes hold 0 at most; lower it or add nodes",
        ),
    ],
)
def test_what_can_never_fit_is_told(
    workers: int, needs: dict[str, float], beside: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        holding(monkeypatch, {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}, {"CPU": 1}),
        pytest.raises(UserError) as caught,
    ):
        cluster.check_fits("scale.x=1", workers, needs, beside)
    assert str(caught.value) == f"scale.x=1: {text}"


def test_training_keeps_to_nodes_that_stay_where_any_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(monkeypatch, {"CPU": 8}, {"CPU": 8, "on_demand": 1}):
        assert cluster.pin_to_on_demand({"CPU": 2}) == {"CPU": 2, "on_demand": 0.001}
    with holding(monkeypatch, {"CPU": 8}):
        assert cluster.pin_to_on_demand({"CPU": 2}) == {"CPU": 2}


def test_without_an_autoscaler_the_nodes_are_those_that_are_there(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [node] = cluster.nodes()
    assert node["CPU"] == 4


def test_nodes_that_the_autoscaler_may_start_count(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text((ROOT / "cluster.yaml").read_text())
    monkeypatch.setattr(resources, "_BOOTSTRAP", file)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    types = launched()["available_node_types"]
    counts = {name: 1 if name == "head" else kind["max_workers"] for name, kind in types.items()}
    found = cluster.nodes()
    assert len(found) == sum(counts.values())
    assert sum(node.get("GPU", 0) for node in found) == sum(
        counts[name] * kind["resources"].get("GPU", 0) for name, kind in types.items()
    )
    monkeypatch.delenv("RAY_ADDRESS")
    assert len(cluster.nodes()) == 1, (
        "a Ray of this machine's own has no autoscaler, whatever file lies there"
    )


# --- cluster.yaml --------------------------------------------------------------------------------


def test_cluster_yaml_is_what_ray_takes() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launched(), schema)
    validate_config(prepare_config(copy.deepcopy(launched())))


def test_only_scoring_is_on_spot_and_nothing_trains_there() -> None:
    types = launched()["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    on_demand = {name for name, kind in types.items() if cluster.ON_DEMAND in kind["resources"]}
    assert spot == {"spot"}
    assert on_demand == {"cpu", "gpu", "gpu8"}


def test_no_port_is_open_and_a_token_is_demanded() -> None:
    content = launched()
    assert all("SecurityGroupIds" in kind["node_config"] for kind in content["available_node_types"].values())
    assert any("--dashboard-host=127.0.0.1" in command for command in content["head_start_ray_commands"])
    assert "--env RAY_AUTH_MODE=token" in content["docker"]["run_options"]
    assert list(content["file_mounts"]) == ["/home/ray/.ray/auth_token"]


def test_four_lines_are_to_be_changed() -> None:
    text = (ROOT / "cluster.yaml").read_text().partition("cluster_name")[2]
    assert [text.count(f"({number})") for number in (1, 2, 3, 4, 5)] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "scale").glob("*.yaml")), ids=lambda file: file.stem
)
def test_what_each_scale_asks_for_fits_the_cluster(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = config.load([str(file)]).scale
    needs = {"CPU": scale.cpus_per_worker, "GPU": float(scale.gpu is True), cluster.ON_DEMAND: 0.001}
    workers = scale.workers
    assert isinstance(workers, int)
    with holding(monkeypatch, *resources.nodes_of_config(launched())):
        cluster.check_fits(file.stem, workers, needs, beside=1)
        with pytest.raises(UserError, match="do not fit"):
            cluster.check_fits(file.stem, 1000, needs)
    if file.stem == "gpu8":
        with holding(monkeypatch, launched()["available_node_types"]["gpu8"]["resources"]):
            cluster.check_fits(file.stem, workers, needs, beside=1)


# --- what is uploaded ----------------------------------------------------------------------------


def test_what_a_job_uploads_is_small_and_complete(tmp_path: Path) -> None:
    import zipfile

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert package.stat().st_size < 48 * 2**20
    assert {
        "jobs/score.py",
        "ageray/zoo/default/1/model.safetensors",
        "ageray/report/templates/score.html",
        "configs/scale/cluster.yaml",
    } <= set(names)
    assert not [
        name
        for name in names
        if name.split("/")[0] in (".git", ".venv", "tests", "docs", "runs", "shards", "scores")
    ]
