"""Actors for the resources of a cluster, and what no cluster of that kind could run."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ageray.cluster.actors import ActorPool, describe, detects_on_gpu, plan_actors
from ageray.errors import UserError
from ageray.experiment import Scale

FOUR, BIG, GPUS = {"CPU": 4.0}, {"CPU": 32.0}, {"CPU": 16.0, "GPU": 4.0}


def cluster(patch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    nodes = [{"Alive": True, "Resources": each} for each in resources]
    patch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])


@pytest.mark.parametrize(
    ("nodes", "scale", "pool"),
    [
        ([FOUR], {}, ActorPool(1, 1, 0, 0)),
        ([{"CPU": 3.0}], {}, ActorPool(1, 1, 0, 0)),
        ([{"CPU": 2.0}], {}, ActorPool(1, 0, 0, 0)),
        ([{"CPU": 2.0, "GPU": 1.0}], {}, ActorPool(1, 0, 1, 0)),
        ([BIG], {}, ActorPool(16, 1, 0, 1)),
        ([BIG, FOUR], {"cpus_per_worker": 2}, ActorPool(9, 2, 0, 2)),
        ([GPUS, FOUR], {}, ActorPool(4, 1, 1, 1)),
        ([{"CPU": 2.0, "GPU": 4.0}, BIG], {}, ActorPool(2, 1, 1, 1)),
        ([GPUS], {"gpu": False, "score_workers": 2, "threads": 6}, ActorPool(2, 1, 0, 6)),
        ([FOUR], {"score_workers": 6, "cpus_per_worker": 0.5, "threads": 3}, ActorPool(6, 0.5, 0, 3)),
    ],
)
def test_plan_actors(
    nodes: list[dict[str, float]], scale: dict[str, Any], pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(monkeypatch, *nodes)
    assert plan_actors(Scale(**scale)) == pool


@pytest.mark.parametrize(
    ("nodes", "scale", "message"),
    [
        ([FOUR], {"score_workers": 4}, "leave none of 4 logical CPUs for decoding"),
        ([FOUR], {"gpu": True}, "scale.gpu=true: the cluster has no GPU"),
        ([GPUS], {"score_workers": 5}, "each takes a GPU, and there are 4"),
        ([FOUR, FOUR, FOUR], {"score_workers": 1, "cpus_per_worker": 6}, "do not fit the cluster's 3 nodes"),
        ([{"CPU": 2.0, "GPU": 4.0}, BIG], {"score_workers": 4}, "and a GPU each do not fit"),
    ],
)
def test_what_could_never_run(
    nodes: list[dict[str, float]], scale: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(monkeypatch, *nodes)
    with pytest.raises(UserError) as caught:
        plan_actors(Scale(**scale))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "scale", "pool"),
    [
        ([{"CPU": 16.0, "GPU": 1.0}], {}, ActorPool(1, 4, 1, 0)),
        ([{"CPU": 48.0, "GPU": 4.0}, BIG], {}, ActorPool(4, 3, 1, 3)),
        ([{"CPU": 16.0, "GPU": 1.0}], {"cpus_per_worker": 8}, ActorPool(1, 8, 1, 0)),
        ([GPUS], {}, ActorPool(4, 1, 1, 1)),
        ([BIG], {}, ActorPool(16, 1, 0, 1)),
        ([GPUS], {"gpu": False}, ActorPool(8, 1, 0, 1)),
    ],
)
def test_actors_that_detect_on_a_gpu_have_cpus_to_cut_canvases(
    nodes: list[dict[str, float]], scale: dict[str, Any], pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(monkeypatch, *nodes)
    assert plan_actors(Scale(**scale), detecting=True) == pool


def test_where_faces_are_found() -> None:
    on_gpu, on_cpu = ActorPool(1, 4, 1, 0), ActorPool(1, 1, 0, 0)
    choices = []
    for detect in ("auto", "cpu", "gpu"):
        choices.append(detects_on_gpu(Scale(detect=detect), on_gpu))  # type: ignore[arg-type]
    assert choices == [True, False, True]
    assert not detects_on_gpu(Scale(), on_cpu)
    with pytest.raises(UserError, match=r"^scale.detect=gpu: the cluster has no GPU; use scale.detect=auto$"):
        detects_on_gpu(Scale(detect="gpu"), on_cpu)
    with pytest.raises(UserError, match=r"^scale.detect=gpu: scale.gpu=false leaves the actors none"):
        detects_on_gpu(Scale(detect="gpu", gpu=False), on_cpu)


def test_describe() -> None:
    assert (
        describe(ActorPool(1, 1, 0, 0), 64, 32)
        == "1 actor on all cores, 64 faces a batch; other CPUs decode 32 images a task"
    )
    assert describe(ActorPool(2, 1, 1, 1), 256, 32).startswith("2 actors on a GPU each, 256 faces a batch")
    one = "1 actor on a GPU with the detector and 4 CPUs, 256 faces a batch; other CPUs decode"
    assert describe(ActorPool(1, 4, 1, 0), 256, 32, detecting=True).startswith(one)


def test_batches_follow_the_accelerator() -> None:
    assert [Scale().faces_a_batch(gpu) for gpu in (False, True)] == [64, 256]
    assert Scale(score_batch=8).faces_a_batch(True) == 8
