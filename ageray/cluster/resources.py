"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ray
import ray.data
import yaml
from ray._private.state import state as ray_state

from ageray.cluster.connect import _address
from ageray.errors import UserError

ON_DEMAND = "on_demand"
"""A node that offers this resource stays. Where there are any, training workers go to no other: a spot node may be taken away at any minute."""

_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` leaves on the head node, where submitted jobs run: the node types that its autoscaler may start."""


def nodes() -> list[dict[str, float]]:
    """Resources of each node of the connected cluster at its largest: the nodes that are there or, where an autoscaler may start more, as
    many of each type as it may start."""
    there = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    may_come = list(_may_come())
    return (
        may_come
        if _sum(may_come, "CPU") > _sum(there, "CPU") or _sum(may_come, "GPU") > _sum(there, "GPU")
        else there
    )


def check_fits(what: str, workers: int, needs: dict[str, float], beside: float = 0) -> None:
    """Raises UserError if the cluster could never hold so many workers of such needs at once and `beside` logical CPUs for other work: Ray
    would wait for room for ever. `what` names the setting and its value."""
    largest = nodes()
    fit = holds(largest, needs)
    cpus = _sum(largest, "CPU")
    each = " and ".join(
        f"{amount:g} {name}" for name, amount in needs.items() if amount and name != ON_DEMAND
    )
    if fit < workers:
        on = f" on nodes that offer {ON_DEMAND}" if needs.get(ON_DEMAND) else ""
        raise UserError(
            f"{what}: {workers} of {each} do not fit{on}; the cluster's {len(largest)} nodes hold {fit} at most; lower it or add nodes"
        )
    if workers * needs.get("CPU", 0) + beside > cpus:
        raise UserError(
            f"{what}: {workers} of {each} leave less than {beside:g} of {cpus:g} logical CPUs to read data; lower it or add nodes"
        )


def holds(nodes: list[dict[str, float]], needs: dict[str, float]) -> int:
    """How many workers of such needs, each on one node, the nodes hold at once."""
    return sum(_holds(node, needs) for node in nodes)


def pin_to_on_demand(needs: dict[str, float]) -> dict[str, float]:
    """The needs of a training worker, which is to run on nodes that stay where the cluster tells those from spot nodes."""
    return needs | {ON_DEMAND: 0.001} if any(ON_DEMAND in node for node in nodes()) else needs


def _may_come() -> Iterator[dict[str, float]]:
    """Resources of every node that an autoscaler may have running at once, the head's included; none where there is no autoscaler."""
    told = (
        ray_state.get_cluster_config() if ray.is_initialized() else None
    )  # by autoscaler v2, so by KubeRay's too
    if told is not None:
        for group in told.node_group_configs:
            yield from [dict(group.resources)] * group.max_count
    elif _address() and _LAUNCHED.expanduser().is_file():
        yield from _launched(yaml.safe_load(_LAUNCHED.expanduser().read_text()))


def _launched(config: dict[str, object]) -> Iterator[dict[str, float]]:
    """The nodes of a `cluster.yaml` at their most: its head, and of each type as many as `max_workers` allows."""
    types, head = config["available_node_types"], config["head_node_type"]
    assert isinstance(types, dict)
    for name, kind in types.items():
        yield from [dict(kind["resources"])] * (
            1 if name == head else int(kind.get("max_workers", config["max_workers"]))
        )


def _holds(node: dict[str, float], needs: dict[str, float]) -> int:
    return int(
        min((node.get(name, 0) / amount + 1e-6 for name, amount in needs.items() if amount), default=0)
    )


def _sum(nodes: list[dict[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
