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
            add_node(cluster)
            with (
                connected(cluster),
                clocked() as seconds,
                load_on_cluster(
                    InMemoryImageTextDataset, rows, image_size=(SIDE, SIDE), storage="decoded", progress=False
                ) as held,
            ):
                node = _victim(cluster, held)
                speeds.append(len(rows) / seconds["load_seconds"])
                nodes = sorted(living_nodes(), key=lambda node_id: node_id == node.node_id)  # the victim comes last
                ranks = [Rank.options(**on_node(each)).remote() for each in nodes]  # type: ignore[attr-defined]
                found["actor, no ranks"].append(_recover(held, ranks, _kill_actor_of(node)))
                ray.get([rank.attach.remote(held, keep=True) for rank in ranks])
                found["actor, attached ranks"].append(_recover(held, ranks, _kill_actor_of(node)))
                found["node"].append(_recover(held, ranks[:-1], _remove(cluster, node)))
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


def _victim(cluster: Cluster, held: ShardedDataset[Any]) -> Any:
    """Choose a node that is not the head, and not that of the coordinator, with which all would be lost."""
    home = ray._private.state.actors(held._coordinator._actor_id.hex())["Address"]["NodeID"]
    return next(node for node in cluster.worker_nodes if node.node_id != home)


def _kill_actor_of(node: Any) -> Callable[[], None]:
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    here = [actor for actor in actors if actor["Address"]["NodeID"] == node.node_id]
    (pid,) = [actor["Pid"] for actor in here if actor["ActorClassName"] == "NodeActor"]
    return lambda: os.kill(pid, signal.SIGKILL)


def _remove(cluster: Cluster, node: Any) -> Callable[[], None]:
    return lambda: cluster.remove_node(node, allow_graceful=False)


def _recover(held: ShardedDataset[Any], ranks: Sequence[Any], end: Callable[[], None]) -> Figures:
    """End something, and give the seconds until that is noticed, until all is held again, and of an attachment."""
    num_events = len(held.report.events)
    started = time.perf_counter()
    end()
    events: list[str] = []
    while not any("again by" in event for event in events):
        if time.perf_counter() - started > _PATIENCE_SECONDS:
            raise RuntimeError(f"nothing was loaded again: {events}")
        time.sleep(_LOOK_SECONDS)
        events = list(held.report.events[num_events:])  # which waits, once it is noticed
    whole = time.perf_counter() - started
    noticed = [event for event in events if "was lost" in event] or [event for event in events if "ended" in event]
    again = [event for event in events if "again by" in event]
    restored = _at(again[-1]) - _at(noticed[-1])
    attached = ray.get([rank.attach.remote(held) for rank in ranks])
    return {
        "noticed_seconds": whole - restored,
        "restored_seconds": restored,
        "whole_seconds": whole,
        "attach_ms": 1e3 * median(attached),
    }


def _at(event: str) -> float:
    """Give when something happened, by the report, to a tenth of a second."""
    return float(event.partition(" s: ")[0])
