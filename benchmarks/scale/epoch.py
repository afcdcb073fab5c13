"""Epochs of one rank over what its node serves, against the same over a dataset that knows of no cluster."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import ray
from torch.utils.data import DataLoader

from benchmarks.load.figures import Figures, spread
from benchmarks.scale.clusters import SIDE, connected, living_nodes, on_node, picture_rows, running
from benchmarks.scale.plan import Plan
from in_memory_datasets import EpochSampler, InMemoryImageTextDataset, collate_in_memory_images
from in_memory_datasets.scale import ShardedDataset, load_on_cluster

BATCH_SIZES = (32, 256)
# With two nodes half of what is dealt anew comes from the other one: so a tenth of what is served is borrowed.
FRACTION = 0.2
_OPTIONS: dict[str, Any] = {"image_size": (SIDE, SIDE), "storage": "decoded", "progress": False}


@ray.remote(num_cpus=0)
class Rank:
    """Rank 0 of a job with a rank on every node, which has the samples of its node in a dataset of its own too.

    Args:
        sharded: What the cluster holds.
        node_ids: The node of every rank; this one runs on the first.
        rows: The rows of the first node.
    """

    def __init__(self, sharded: ShardedDataset[Any], node_ids: Sequence[str], rows: Sequence[Any]) -> None:
        self._sharded, self._node_ids = sharded, list(node_ids)
        self._alone = InMemoryImageTextDataset(rows, **_OPTIONS)
        self._shards = {"shard": sharded.local_shard(0), "guests": sharded.local_shard(1)}

    def measure(self, batch_size: int, repeats: int) -> dict[str, list[float]]:
        """Give the seconds of the epochs of each way, repeat by repeat."""
        options: dict[str, Any] = {"collate_fn": collate_in_memory_images}
        loaders = {"alone": DataLoader(self._alone, batch_size, sampler=EpochSampler(self._alone), **options)}
        for epoch, (name, shard) in enumerate(self._shards.items()):
            sampler = self._sharded.sampler(shard, batch_size, rank=0, node_ids=self._node_ids)
            sampler.set_epoch(epoch)
            loaders[name] = DataLoader(shard, batch_sampler=sampler, **options)
        _one_epoch_of_each(loaders)
        epochs = [_one_epoch_of_each(loaders) for _ in range(repeats)]
        return {name: [seconds[name] for seconds in epochs] for name in loaders}

    def turn(self, repeats: int) -> list[float]:
        """Give the seconds that it takes to turn to another epoch of which all is there."""
        shard = self._shards["shard"]
        sampler = self._sharded.sampler(shard, BATCH_SIZES[0], rank=0, node_ids=self._node_ids)
        times = []
        for repeat in range(2 * repeats):
            started = time.perf_counter()
            sampler.set_epoch((repeat + 1) % 2)
            times.append(time.perf_counter() - started)
        return times

    def served(self) -> tuple[int, int]:
        """Count what is served with guests, and what of that is borrowed."""
        parts = self._shards["guests"]._share.shown.parts()
        return len(parts.rows), len(parts.foreign)


def _one_epoch_of_each(loaders: dict[str, Any]) -> dict[str, float]:
    """Give the seconds of an epoch of each; they take turns batch by batch, since a machine is not even for longer.

    In an order that is drawn anew each time: who always came after the same one was slower or faster by that.
    """
    ways = [(name, iter(loader)) for name, loader in loaders.items()]
    seconds, draw = dict.fromkeys(loaders, 0.0), random.Random(7)
    for _ in range(min(map(len, loaders.values()))):
        for name, batches in draw.sample(ways, len(ways)):
            started = time.perf_counter()
            next(batches)
            seconds[name] += time.perf_counter() - started
    return seconds


def measure_epoch(plan: Plan) -> Figures:
    """Take turns with batches of two sizes."""
    rows, found = picture_rows(2 * plan.num_served), []
    with running(2) as cluster, connected(cluster), load_on_cluster(InMemoryImageTextDataset, rows, **_OPTIONS) as held:
        nodes = living_nodes()
        first = held.plan.nodes[0].node_id
        nodes.sort(key=lambda node_id: node_id != first)
        held.reshuffle(1, fraction=FRACTION)
        rank = Rank.options(**on_node(first)).remote(held, nodes, rows[: plan.num_served])  # type: ignore[attr-defined]
        for batch_size in BATCH_SIZES:
            seconds = ray.get(rank.measure.remote(batch_size, plan.repeats))
            num_batches = -(-plan.num_served // batch_size)
            alone = seconds.pop("alone")
            for way, its_seconds in seconds.items():
                pairs = list(zip(its_seconds, alone, strict=True))
                found.append(
                    {
                        "way": way,
                        "batch_size": batch_size,
                        "alone_per_s": spread(plan.num_served / each for each in alone),
                        "per_s": spread(plan.num_served / each for each in its_seconds),
                        "above_us": spread(1e6 * (own - other) / num_batches for own, other in pairs),
                        "above_percent": spread(100 * (own / other - 1) for own, other in pairs),
                    }
                )
                print(f"  {way}, B = {batch_size}: {found[-1]['above_percent']['median']:+.1f} %", flush=True)
        turning = spread(1e3 * each for each in ray.get(rank.turn.remote(plan.repeats)))
        num_samples, num_borrowed = ray.get(rank.served.remote())
    return {
        "num_samples": plan.num_served,
        "borrowed_percent": 100 * num_borrowed / num_samples,
        "repeats": plan.repeats,
        "turn_ms": turning,
        "rows": found,
    }
