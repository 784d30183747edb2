"""What the connected cluster has room for, now or once its autoscaler has started every node that
it may.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ray
import yaml
from ray._private.state import state as ray_state

from ageray.errors import UserError
from ageray.machine.engine import cluster_address

ON_DEMAND = "on_demand"
"""Nodes that are not spot nodes offer this resource. Where a cluster has any, training workers run
only there, because a spot node may be taken away at any minute."""

_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` leaves on the head node, where submitted jobs run: the node types of its
autoscaler.
"""

Resources = dict[str, float]
"""Amounts by name: CPU, GPU, ON_DEMAND."""


def nodes() -> list[Resources]:
    """Resources of each node of the cluster at its largest: those that run now, or all that may be
    started.
    """
    running = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            running.append(dict(node["Resources"]))
    possible = list(_possible_nodes())
    for name in ("CPU", "GPU"):
        if total(possible, name) > total(running, name):
            return possible
    return running


def check_fits(what: str, workers: int, needs: Resources, beside: float = 0) -> None:
    """Raises UserError if the cluster can never run `workers` with these needs and `beside` further
    CPUs at once.

    Ray would wait for room without end. what: the setting and its value, for the message.
    """
    largest = nodes()
    room = capacity(largest, needs)
    cpus = total(largest, "CPU")
    amounts = []
    for name, amount in needs.items():
        if amount and name != ON_DEMAND:
            amounts.append(f"{amount:g} {name}")
    each = " and ".join(amounts)
    if room < workers:
        where = ""
        if needs.get(ON_DEMAND):
            where = f" on nodes that offer {ON_DEMAND}"
        limit = f"the cluster's {len(largest)} nodes hold {room} at most"
        raise UserError(f"{what}: {workers} of {each} do not fit{where}; {limit}; lower it or add nodes")
    if workers * needs.get("CPU", 0) + beside > cpus:
        rest = f"less than {beside:g} of {cpus:g} logical CPUs to read data"
        raise UserError(f"{what}: {workers} of {each} leave {rest}; lower it or add nodes")


def capacity(nodes: list[Resources], needs: Resources) -> int:
    """How many workers with these needs run on the nodes at once. A worker takes all it needs from
    one node.
    """
    return sum(_capacity(node, needs) for node in nodes)


def pin_to_on_demand(needs: Resources) -> Resources:
    """The needs of a training worker: with ON_DEMAND, where the cluster has nodes that offer it."""
    if total(nodes(), ON_DEMAND):
        return needs | {ON_DEMAND: 0.001}
    return needs


def _possible_nodes() -> Iterator[Resources]:
    """Resources of every node that the autoscaler may run at once, with the head; none without an
    autoscaler.
    """
    # Only autoscaler v2, which KubeRay has, gives a cluster config.
    config = ray_state.get_cluster_config() if ray.is_initialized() else None
    if config is not None:
        for group in config.node_group_configs:
            yield from [dict(group.resources)] * group.max_count
    elif cluster_address() and _BOOTSTRAP.expanduser().is_file():
        yield from nodes_of_config(yaml.safe_load(_BOOTSTRAP.expanduser().read_text()))


def nodes_of_config(config: dict[str, object]) -> Iterator[Resources]:
    """The most nodes of a `cluster.yaml`: its head, and `max_workers` of each other type."""
    types, head = config["available_node_types"], config["head_node_type"]
    assert isinstance(types, dict)
    for name, kind in types.items():
        count = int(kind.get("max_workers", config["max_workers"]))
        if name == head:
            count = 1
        yield from [dict(kind["resources"])] * count


def _capacity(node: Resources, needs: Resources) -> int:
    workers = [node.get(name, 0) / amount for name, amount in needs.items() if amount]
    return int(min(workers, default=0) + 1e-6)


def total(nodes: list[Resources], name: str) -> float:
    """The amount of one resource on all nodes together."""
    return sum(node.get(name, 0) for node in nodes)
