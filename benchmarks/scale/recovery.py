"""From the end of an actor, or of a node, until every sample is held again: noticing it, and loading."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.load.figures import Figures, spread
from benchmarks.scale.clusters import (
    DECODED_BYTES,
    QUICK_TO_NOTICE,
    SIDE,
    add_node,
    connected,
    living_nodes,
    on_node,
    picture_rows,
    running,
)
from benchmarks.scale.load import clocked
from benchmarks.scale.plan import Plan
from in_memory_datasets import InMemoryImageTextDataset
from in_memory_datasets.scale import ShardedDataset, load_on_cluster
from in_memory_datasets.scale.coordinator import LOST

_NUM_NODES = 3
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 180.0


@ray.remote(num_cpus=0)
class Rank:
    """A process of a node that has the samples there."""

    def attach(self, sharded: ShardedDataset[Any], *, keep: bool = False) -> float:
        """Attach to what the node serves, and give the seconds that took."""
        started = time.perf_counter()
        dataset = sharded.local_shard()
        seconds = time.perf_counter() - started
        if keep:
            self._dataset = dataset
        else:
            dataset.close()
        return seconds


def measure_recovery(plan: Plan) -> Figures:
    """End actors whose ranks are attached, actors without ranks, and nodes."""
    found: dict[str, list[Figures]] = {"actor, attached ranks": [], "actor, no ranks": [], "node": []}
    speeds: list[float] = []
    rows = picture_rows(_NUM_NODES * plan.num_lost)
    settings = QUICK_TO_NOTICE if plan.quick_to_notice else None
    with running(_NUM_NODES - 1, settings) as cluster:
        for _ in range(plan.slow_repeats):
            node = add_node(cluster)
            with (
                connected(cluster),
                clocked() as seconds,
                load_on_cluster(
                    InMemoryImageTextDataset, rows, image_size=(SIDE, SIDE), storage="decoded", progress=False
                ) as held,
            ):
                speeds.append(len(rows) / seconds["load_seconds"])
                ranks = [Rank.options(**on_node(each)).remote() for each in living_nodes()]  # type: ignore[attr-defined]
                found["actor, no ranks"].append(_recover(held, node, ranks, _kill_actor_of(held, node)))
                ray.get([rank.attach.remote(held, keep=True) for rank in ranks])
                found["actor, attached ranks"].append(_recover(held, node, ranks, _kill_actor_of(held, node)))
                found["node"].append(_recover(held, node, ranks[:1], _remove(cluster, node)))
    return {
        "num_samples": plan.num_lost,
        "mb": plan.num_lost * DECODED_BYTES / 1e6,
        "num_nodes": _NUM_NODES,
        "loaded_per_s": spread(speeds),
        "repeats": plan.slow_repeats,
        "ray_settings": "quick to notice" if plan.quick_to_notice else "as they come",
        "rows": [
            {"what": what, **{name: spread(turn[name] for turn in turns) for name in turns[0]}}
            for what, turns in found.items()
        ],
    }


def _kill_actor_of(held: ShardedDataset[Any], node: Any) -> Callable[[], None]:
    _, _, actor = _holder_of(held, node)
    pid = ray.get(actor.facts.remote()).pid
    return lambda: os.kill(pid, signal.SIGKILL)


def _remove(cluster: Cluster, node: Any) -> Callable[[], None]:
    return lambda: cluster.remove_node(node, allow_graceful=False)


def _holder_of(held: ShardedDataset[Any], node: Any) -> tuple[int, int, Any]:
    """Give the rows that a node holds, and its actor."""
    first = 0
    for each in held.plan.nodes:
        if each.node_id == node.node_id:
            (found,) = ray.get(held._coordinator.holders.remote(first, first + each.num_samples))
            return tuple(found)  # type: ignore[return-value]
        first += each.num_samples
    raise RuntimeError("the node holds nothing")


def _recover(held: ShardedDataset[Any], node: Any, ranks: Sequence[Any], end: Callable[[], None]) -> Figures:
    """End something, and give the seconds until that is noticed, until all is held again, and of an attachment."""
    _, _, actor = _holder_of(held, node)
    watch = actor.watch.remote()  # as the coordinator does
    num_events = len(held.report.events)
    started = time.perf_counter()
    end()
    try:
        ray.get(watch, timeout=_PATIENCE_SECONDS)
    except LOST:
        ended = time.perf_counter() - started
    # An actor that has ended with its node is known to be lost only when Ray gives the node up.
    noticed = None
    while not any("again by" in event for event in held.report.events[num_events:]):
        events = held.report.events[num_events:]
        if noticed is None and any("was lost" in event for event in events):
            noticed = time.perf_counter() - started
        if time.perf_counter() - started > _PATIENCE_SECONDS:
            raise RuntimeError(f"nothing was loaded again: {events}")
        time.sleep(_LOOK_SECONDS)
    whole = time.perf_counter() - started
    attached = ray.get([rank.attach.remote(held) for rank in ranks])
    return {
        "noticed_seconds": ended if noticed is None else noticed,
        "restored_seconds": whole - (ended if noticed is None else noticed),
        "whole_seconds": whole,
        "attach_ms": 1e3 * median(attached),
    }
