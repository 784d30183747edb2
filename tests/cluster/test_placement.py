"""Three nodes, two of them with GPUs in name only: who trains, scores and searches on which. A
process of its own has that Ray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Queue
from ageray import config
from ageray.cluster import actors
from ageray.errors import UserError
from ageray.train.in_memory import slots
from ageray.experiment import Scale
from ageray.train import run

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
for more in ({"resources": {"on_demand": 1}}, {}):
    nodes.add_node(num_cpus=4, num_gpus=2, object_store_memory=100 * 2**20, **more)
ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
names = {}
for node in ray.nodes():
    name = "spot" if "GPU" in node["Resources"] else "head"
    names[node["NodeID"]] = "stays" if "on_demand" in node["Resources"] else name
report = {}


def own_place():
    return names[ray.get_runtime_context().get_node_id()], sorted(ray.get_gpu_ids())


def message(call):
    try:
        call()
    except UserError as error:
        return str(error)


scaling = run._scaling(config.load([], ["scale.workers=2", "scale.gpu=true"]))
queue = Queue(actor_options={"num_cpus": 0})
DataParallelTrainer(
    lambda settings: settings["queue"].put(own_place()),
    train_loop_config={"queue": queue},
    scaling_config=scaling,
    run_config=RunConfig(storage_path=sys.argv[1]),
).fit()
report["train"] = sorted(queue.get() for _ in range(2))
too_many = config.load([], ["scale.workers=3", "scale.gpu=true"])
report["too many to train"] = message(lambda: run._scaling(too_many))
elastic = config.load([], ["scale.workers=[1, 8]", "scale.gpu=true"])
report["as many as there is room for"] = run._scaling(elastic).num_workers

scoring = actors.plan_actors(Scale())
report["pool"] = scoring


@ray.remote(num_cpus=scoring.cpus, num_gpus=scoring.gpus)
class Actor:
    def place(self):
        return own_place()


handles = [Actor.remote() for _ in range(scoring.actors)]
report["score"] = sorted(ray.get([handle.place.remote() for handle in handles]))
report["too many to score"] = message(lambda: actors.plan_actors(Scale(score_workers=5)))
for handle in handles:
    ray.kill(handle)


def fold(number):
    time.sleep(3)
    return own_place()


# eight trainings side by side on four GPUs: two share one
folds = slots.plan_slots(Scale(parallel_trainings=8))
report["share"] = folds
tasks = [(number, (number,)) for number in range(8)]
report["folds"] = sorted(ray.get(ready) for _, ready in folds.map_unordered(fold, tasks))
print(json.dumps(report), flush=True)
ray.shutdown()
nodes.shutdown()
"""


pytestmark = pytest.mark.slow  # three nodes; tests/cluster/test_actors.py has the arithmetic


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("runs"))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_training_takes_a_gpu_a_worker_on_nodes_that_stay(report: dict[str, Any]) -> None:
    assert report["train"] == [["stays", [0]], ["stays", [1]]]
    assert report["too many to train"].startswith(
        "scale.workers=3: the cluster has room for 2 workers of 1 CPUs and a GPU each"
    )
    assert report["as many as there is room for"] == [1, 2]


def test_scoring_takes_every_gpu(report: dict[str, Any]) -> None:
    assert report["pool"] == [4, 1, 1, 1]
    assert report["score"] == [["spot", [0]], ["spot", [1]], ["stays", [0]], ["stays", [1]]]
    assert (
        report["too many to score"]
        == "scale.score_workers=5: each takes a GPU, and there are 4; use 0 for all of them"
    )


def test_trainings_side_by_side_share_gpus_evenly(report: dict[str, Any]) -> None:
    at_once, _, gpus, _ = report["share"]
    assert (at_once, gpus) == (8, 0.5)
    assert report["folds"] == [[place, [gpu]] for place in ("spot", "stays") for gpu in (0, 0, 1, 1)]
