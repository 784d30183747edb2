"""The Ray cluster: joining or starting one, what it has room for, and the processes that compute on it."""

from ageray.cluster.connect import connect
from ageray.cluster.environment import environment
from ageray.cluster.resources import LASTING, check_fits, holds, lasting, nodes

__all__ = ["LASTING", "check_fits", "connect", "environment", "holds", "lasting", "nodes"]
