"""The exchange of samples between nodes, against bare copies of arrays through the same object stores."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks.load.figures import Figures, Turn, alternate, ratio, spread
from benchmarks.scale.clusters import DECODED_BYTES, SIDE, connected, living_nodes, on_node, picture_rows, running
from benchmarks.scale.plan import Plan
from in_memory_datasets import InMemoryImageTextDataset, collate_in_memory_images
from in_memory_datasets.scale import ShardedDataset, load_on_cluster
from in_memory_datasets.scale.node import _NUM_UNDER_WAY, _PARCEL_BYTES
from in_memory_datasets.scale.view import Terms

_OPTIONS: dict[str, Any] = {"image_size": (SIDE, SIDE), "storage": "decoded", "progress": False}
_BATCH_SIZE, _NUM_REQUESTS = 256, 50
_LEAST_SECONDS, _LEAST_BATCHES = 0.5, 4  # of what is read before an exchange


@ray.remote(num_cpus=0, concurrency_groups={"giving": 4, "taking": 1})
class Peer:
    """Gives arrays, and takes as many from others as an exchange does, as many at once."""

    def __init__(self) -> None:
        self._held = np.ones(2 * _PARCEL_BYTES, np.uint8)

    @ray.method(concurrency_group="giving")
    def give(self, num_bytes: int) -> NDArray[np.uint8]:
        return self._held[:num_bytes].copy()

    @ray.method(concurrency_group="taking")
    def take(self, givers: Sequence[Any], num_bytes: int) -> int:
        """Take so many bytes, from one giver after the other."""
        under_way: deque[Any] = deque()
        taken = 0
        for giver in givers:
            each = num_bytes // len(givers)
            for start in range(0, each, _PARCEL_BYTES):
                if len(under_way) == _NUM_UNDER_WAY:
                    taken += ray.get(under_way.popleft()).nbytes
                under_way.append(giver.give.remote(min(_PARCEL_BYTES, each - start)))
        while under_way:
            taken += ray.get(under_way.popleft()).nbytes
        return taken

    @ray.method(concurrency_group="taking")
    def ask(self, giver: Any, repeats: int) -> list[float]:
        """Give the seconds that it takes to be given next to nothing."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            ray.get(giver.give.remote(1))
            times.append(time.perf_counter() - started)
        return times


@ray.remote(num_cpus=0, concurrency_groups={"reading": 1, "asking": 1})
class Rank:
    """Rank 0 of a job with a rank on every node, which reads until it is told to stop."""

    def __init__(self, sharded: ShardedDataset[Any], node_ids: Sequence[str]) -> None:
        self._dataset = sharded.local_shard(0)
        sampler = sharded.sampler(self._dataset, _BATCH_SIZE, rank=0, node_ids=list(node_ids))
        self._loader = DataLoader(self._dataset, batch_sampler=sampler, collate_fn=collate_in_memory_images)
        self._is_over, self._num_read = False, 0

    @ray.method(concurrency_group="reading")
    def read(self) -> list[tuple[float, int]]:
        """Give the time after each batch, as time.monotonic has it for all processes, and its samples."""
        self._num_read, self._is_over, times = 0, False, []
        while True:
            for batch in self._loader:
                times.append((time.monotonic(), len(batch["captions"])))
                self._num_read += 1
                if self._is_over:
                    return times

    @ray.method(concurrency_group="asking")
    def num_read(self) -> int:
        return self._num_read

    @ray.method(concurrency_group="asking")
    def stop(self) -> None:
        self._is_over = True


def measure_exchange(plan: Plan) -> Figures:
    """Exchange all samples of clusters of several sizes."""
    return {
        "num_samples": plan.num_exchanged,
        "repeats": plan.slow_repeats,
        "parcel_mb": _PARCEL_BYTES / 1e6,
        "rows": [_measure(num_nodes, plan) for num_nodes in plan.exchanging],
    }


def _measure(num_nodes: int, plan: Plan) -> Figures:
    rows = picture_rows(num_nodes * plan.num_exchanged)
    with (
        running(num_nodes) as cluster,
        connected(cluster),
        load_on_cluster(InMemoryImageTextDataset, rows, **_OPTIONS) as held,
    ):
        nodes = living_nodes()
        rank = Rank.options(**on_node(nodes[0])).remote(held, nodes)  # type: ignore[attr-defined]
        # From epoch 1 on all are dealt anew. What asks for an epoch's views has its samples brought.
        held.reshuffle(1, fraction=1.0)
        epoch = _Epochs(held, nodes)
        epoch.exchange()
        peers = [Peer.options(**on_node(node)).remote() for node in nodes]  # type: ignore[attr-defined]
        num_bytes = epoch.num_bytes
        ways: dict[str, Callable[[], Turn]] = {
            "bare": partial(_copy, peers, num_bytes),
            "exchange": epoch.exchange,
        }
        turns = alternate(plan.slow_repeats, ways)
        sizes = held.nbytes.values()
        meanwhile = [_read_meanwhile(rank, epoch.exchange) for _ in range(plan.slow_repeats)]
        return {
            "num_nodes": num_nodes,
            "borrowed_mb": num_bytes / 1e6,
            "home_mb_of_node": max(home for home, _ in sizes) / 1e6,
            "borrowed_mb_of_node": max(borrowed for _, borrowed in sizes) / 2e6,  # of the last two epochs
            "seconds": spread(turn.seconds for turn in turns["exchange"]),
            "mb_per_s": spread(turn.per_s / 1e6 for turn in turns["exchange"]),
            "bare_mb_per_s": spread(turn.per_s / 1e6 for turn in turns["bare"]),
            "to_bare": ratio(turns["exchange"], turns["bare"]),
            "request_ms": spread(1e3 * each for each in ray.get(peers[0].ask.remote(peers[1], _NUM_REQUESTS))),
            "before_per_s": spread(before for before, _ in meanwhile),
            "meanwhile_per_s": spread(during for _, during in meanwhile),
            "meanwhile_to_before": spread(during / before for before, during in meanwhile),
        }


class _Epochs:
    """Exchanges one after the other, each for an epoch of its own."""

    def __init__(self, held: ShardedDataset[Any], nodes: Sequence[str]) -> None:
        self._held, self._nodes, self._epoch = held, nodes, 0
        self._terms = Terms(tuple(nodes), _BATCH_SIZE)
        self.num_bytes = 0

    def exchange(self) -> Turn:
        """Bring everywhere what is served in the next epoch; the samples of a turn are the bytes that are lent."""
        self._epoch += 1
        coordinator, started = self._held._coordinator, time.perf_counter()
        views = ray.get([coordinator.view.remote(node, self._epoch, self._terms, True) for node in self._nodes])
        seconds = time.perf_counter() - started
        self.num_bytes = DECODED_BYTES * sum(len(view.parts().foreign) for view in views)
        return Turn(self.num_bytes, seconds)


def _copy(peers: Sequence[Any], num_bytes: int) -> Turn:
    started = time.perf_counter()
    each = num_bytes // len(peers)
    others = [[*peers[i + 1 :], *peers[:i]] for i in range(len(peers))]
    taken = ray.get([peer.take.remote(givers, each) for peer, givers in zip(peers, others, strict=True)])
    return Turn(sum(taken), time.perf_counter() - started)


def _read_meanwhile(rank: Any, exchange: Callable[[], Turn]) -> tuple[float, float]:
    """Give the samples a second that a rank reads, before an exchange and during it."""
    read = rank.read.remote()
    while ray.get(rank.num_read.remote()) < _LEAST_BATCHES:
        time.sleep(_LEAST_SECONDS / 10)
    time.sleep(_LEAST_SECONDS)
    began = time.monotonic()
    exchange()
    ended = time.monotonic()
    ray.get(rank.stop.remote())
    times = ray.get(read)
    first, _ = times[0]
    before = sum(number for at, number in times if first < at <= began) / (began - first)
    during = sum(number for at, number in times if began < at <= ended) / (ended - began)
    return before, during
