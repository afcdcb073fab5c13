"""Nodes of a cluster, and ranks as a training job has them: processes on the nodes that read their batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.utils.data import DataLoader

from in_memory_datasets import collate_in_memory_audio, collate_in_memory_images
from in_memory_datasets.scale import ShardedDataset


def living_nodes() -> list[str]:
    """Name the nodes that are alive, the head first."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def on_node(node_id: str) -> dict[str, Any]:
    """Give the options of a task or actor that is to run on a node."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


@ray.remote(num_cpus=0, max_restarts=0)
class Rank:
    """One rank of a job, which takes its batches with a DataLoader; several jobs, one after the other."""

    def start(
        self,
        sharded: ShardedDataset[Any],
        rank: int,
        node_ids: Sequence[str],
        batch_size: int = 4,
        num_workers: int = 0,
        shuffle: bool = True,
    ) -> None:
        """Begin a job.

        Args:
            sharded: What the cluster holds.
            rank: Which one this is.
            node_ids: The node of every rank.
            batch_size: Samples of a batch.
            num_workers: Worker processes of the loader.
            shuffle: Whether the sampler shuffles.
        """
        self.dataset = sharded.local_shard()
        self.sharded = sharded
        self.sampler = sharded.sampler(
            self.dataset, batch_size, rank=rank, node_ids=list(node_ids), seed=3, shuffle=shuffle
        )
        is_audio = type(self.dataset).__name__ == "InMemoryAudioTextDataset"
        self.loader: Any = DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=collate_in_memory_audio if is_audio else collate_in_memory_images,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self._media = "audio" if is_audio else "images"
        self._iterator: Any = None

    def end(self) -> None:
        """End the job, and give up all it had."""
        self.loader = self._iterator = None
        self.dataset.close()

    def pid(self) -> int:
        return os.getpid()

    def load_state(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
        self._iterator = iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
        self._iterator = iter(self.loader)

    def reshuffle(self, epoch: int, fraction: float) -> None:
        self.sharded.reshuffle(epoch, fraction=fraction)

    def take(self, num_batches: int | None = None) -> list[list[tuple[int, str, int]]]:
        """Give the row, the caption and the sum of the media of each sample, batch by batch."""
        batches: list[list[tuple[int, str, int]]] = []
        while num_batches is None or len(batches) < num_batches:
            batch = next(self._iterator, None)
            if batch is None:
                break
            sums = [round(float(media.double().sum())) for media in batch[self._media]]
            batches.append(list(zip(batch["indices"].tolist(), batch["captions"], sums, strict=True)))
        return batches

    def state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def num_batches(self) -> int:
        return len(self.sampler)


# Ranks that have ended their job, by node: to start a process takes longer than most tests.
_idle: dict[str, list[Any]] = {}


def start_ranks(sharded: ShardedDataset[Any], node_ids: Sequence[str], **options: Any) -> list[Any]:
    """Start a job with a rank on each of some nodes."""
    ranks = []
    for node_id in node_ids:
        idle = _idle.setdefault(node_id, [])
        ranks.append(idle.pop() if idle else Rank.options(**on_node(node_id)).remote())  # type: ignore[attr-defined]
    ray.get([rank.start.remote(sharded, i, node_ids, **options) for i, rank in enumerate(ranks)], timeout=120)
    return ranks


def end_ranks(ranks: Sequence[Any], node_ids: Sequence[str]) -> None:
    """End a job; ranks that are still alive are used again."""
    for rank, node_id in zip(ranks, node_ids, strict=True):
        try:
            ray.get(rank.end.remote(), timeout=60)
        except ray.exceptions.RayError:  # killed by the test
            continue
        _idle[node_id].append(rank)


def all_at_once(ranks: Sequence[Any], method: str, *args: Any) -> list[Any]:
    """Call a method of all ranks, as a job does, and give what each returned."""
    return list(ray.get([getattr(rank, method).remote(*args) for rank in ranks], timeout=120))
