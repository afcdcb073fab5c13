"""Beyond one machine: a dataset in the memory of a Ray cluster.

Like the package itself this loads what is asked for when it is asked for: the actors of a cluster, which start whenever
a node is lost, need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from in_memory_datasets.errors import MissingExtraError

if TYPE_CHECKING:
    from in_memory_datasets.scale.division import DEFAULT_FRACTION
    from in_memory_datasets.scale.planning import ClusterPlan
    from in_memory_datasets.scale.ray_data import from_ray_dataset
    from in_memory_datasets.scale.reporting import ClusterReport
    from in_memory_datasets.scale.sampler import ShardSampler
    from in_memory_datasets.scale.sharded import ShardedDataset, load_on_cluster, plan_on_cluster
    from in_memory_datasets.scale.stages import decode_into_rows

__all__ = [
    "DEFAULT_FRACTION",
    "ClusterPlan",
    "ClusterReport",
    "ShardSampler",
    "ShardedDataset",
    "decode_into_rows",
    "from_ray_dataset",
    "load_on_cluster",
    "plan_on_cluster",
]

_MODULES = {
    "DEFAULT_FRACTION": "division",
    "ClusterPlan": "planning",
    "ClusterReport": "reporting",
    "ShardSampler": "sampler",
    "ShardedDataset": "sharded",
    "decode_into_rows": "stages",
    "from_ray_dataset": "ray_data",
    "load_on_cluster": "sharded",
    "plan_on_cluster": "sharded",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("a cluster needs Ray: pip install 'in-memory-datasets[ray]'", extra="ray") from error
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
