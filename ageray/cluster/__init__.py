"""The Ray cluster: joining or starting one, what it has room for, and the processes that compute on
it.
"""

from ageray.cluster.connect import LOSSES, connect
from ageray.cluster.resources import ON_DEMAND, capacity, check_fits, nodes, pin_to_on_demand, total
from ageray.machine.environment import environment

__all__ = [
    "LOSSES",
    "ON_DEMAND",
    "capacity",
    "check_fits",
    "connect",
    "environment",
    "nodes",
    "pin_to_on_demand",
    "total",
]
