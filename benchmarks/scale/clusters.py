"""Clusters of nodes on this machine, and pictures for them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIDE = 224
DECODED_BYTES = SIDE * SIDE * 3
NUM_CPUS = 4  # of a node, as Ray counts them; the actors of the library ask for none
STORE_BYTES = 768 * 2**20
_NUM_DRAWN = 64

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 3,
}


@contextmanager
def running(num_nodes: int, settings: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """Start a cluster of so many nodes, without connecting to it."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    head: dict[str, Any] = {"num_cpus": NUM_CPUS, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    if settings is not None:
        head["_system_config"] = dict(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of what is to change in Ray
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(num_nodes - 1):
                add_node(cluster)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Cluster) -> Any:
    """Add a node and wait until it is there."""
    node = cluster.add_node(num_cpus=NUM_CPUS, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    return node


@contextmanager
def running_each(*sizes: int) -> Iterator[dict[int, Cluster]]:
    """Start a cluster of each of some sizes, side by side, so that they can take turns."""
    with ExitStack() as stack:
        yield {size: stack.enter_context(running(size)) for size in sizes}


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Be a driver of a cluster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        try:
            yield
        finally:
            ray.shutdown()


def living_nodes() -> list[str]:
    """Name the nodes that are alive, the head first."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def on_node(node_id: str) -> dict[str, Any]:
    """Give the options of an actor that is to run on a node."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def picture_rows(num_samples: int) -> list[dict[str, Any]]:
    """Give rows with pictures of 224×224 in JPEG, each file another one, that take little to decode."""
    files = []
    for number in range(_NUM_DRAWN):
        knots = np.random.default_rng([7, number]).integers(0, 255, (6, 6, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(knots).resize((SIDE, SIDE)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    rows = []
    for i in range(num_samples):
        file_bytes = files[i % _NUM_DRAWN]
        comment = b"\xff\xfe\x00\x0a" + i.to_bytes(8, "big")  # so that no two files are the same
        rows.append({"image_url": file_bytes[:2] + comment + file_bytes[2:], "caption": f"picture {i}"})
    return rows
