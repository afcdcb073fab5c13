"""Loading on clusters of one, two and four nodes of this machine, against the same load without a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from benchmarks.load.checking import name_of
from benchmarks.load.figures import Figures, Turn, alternate, ratio, spread
from benchmarks.load.pictures import make_pictures
from benchmarks.load.serving import serve
from benchmarks.scale.clusters import SIDE, connected, running_each
from benchmarks.scale.plan import Plan
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
from in_memory_datasets.scale import load_on_cluster, sharded

_LATENCY_SECONDS = 0.02
_NUM_FIRST = 8  # which take as long as an actor needs for anything
_OPTIONS: dict[str, Any] = {
    "image_size": (SIDE, SIDE),
    "storage": "decoded",
    "fetch": FetchOptions(allow_private_addresses=True),
    "progress": False,
}
# What a load on a cluster is made of, each in a function of its own.
_STEPS = {"_send_rows": "rows_seconds", "_wait_for_load": "load_seconds"}

Rows = Sequence[dict[str, Any]]


def measure_load(plan: Plan) -> Figures:
    """Load rows that hold their pictures, and rows that hold URLs."""
    pictures = make_pictures(plan.num_photos, plan.build)
    names = [name_of(i) for i in range(plan.num_photos)]
    rows = []
    with (
        serve(pictures.directory, latency_seconds=_LATENCY_SECONDS) as server,
        running_each(*plan.num_nodes) as clusters,
    ):
        sources: dict[str, Rows] = {
            "bytes": [
                {"image_url": (pictures.directory / name).read_bytes(), "caption": f"picture {i}"}
                for i, name in enumerate(names)
            ],
            "web": [
                {"image_url": url, "caption": f"picture {i}"}
                for i, url in enumerate(server.urls(pictures.directory, names))
            ],
        }
        smallest = clusters[min(clusters)]
        least = [_together(sources["bytes"][:_NUM_FIRST], smallest) for _ in range(plan.slow_repeats)]
        for source, its_rows in sources.items():
            ways: dict[str, Callable[[], Turn]] = {"one": partial(_alone, its_rows)}
            ways |= {f"{size}": partial(_together, its_rows, cluster) for size, cluster in clusters.items()}
            turns = alternate(plan.slow_repeats, ways, warm_up=plan.warms_up)
            for way, its_turns in turns.items():
                row: Figures = {
                    "source": source,
                    "num_nodes": None if way == "one" else int(way),
                    "per_s": spread(turn.per_s for turn in its_turns),
                    "to_one": spread([1.0]) if way == "one" else ratio(its_turns, turns["one"]),
                }
                if way != "one":
                    for name in ("rows_seconds", "actors_seconds", "load_seconds"):
                        row[name] = spread(turn.found[name] for turn in its_turns)
                rows.append(row)
    return {
        "num_pictures": plan.num_photos,
        "num_first": _NUM_FIRST,
        "first_seconds": spread(turn.found["load_seconds"] for turn in least),
        "latency_ms": 1e3 * _LATENCY_SECONDS,
        "repeats": plan.slow_repeats,
        "rows": rows,
    }


def _alone(rows: Rows) -> Turn:
    started = time.perf_counter()
    with InMemoryImageTextDataset(rows, **_OPTIONS) as dataset:
        turn = Turn(len(rows), time.perf_counter() - started)
        _check(dataset.report.num_ok, rows)
    return turn


def _together(rows: Rows, cluster: Cluster) -> Turn:
    with connected(cluster), clocked() as seconds:
        started = time.perf_counter()
        with load_on_cluster(InMemoryImageTextDataset, rows, **_OPTIONS) as loaded:
            total = time.perf_counter() - started
            _check(loaded.report.num_ok, rows)
    # The speed is that of loading: actors are started once, whatever there is to load.
    turn = Turn(len(rows), seconds["load_seconds"] + seconds["rows_seconds"], found=dict(seconds))
    turn.found["actors_seconds"] = total - turn.seconds
    return turn


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Time the steps of the loads on a cluster that are begun in the block."""
    seconds: dict[str, float] = {}

    def clock(name: str, step: Callable[..., None], coordinator: Any, *args: Any, **kwargs: Any) -> None:
        ray.get(coordinator.describe.remote())  # so that its start is counted with that of the other actors
        started = time.perf_counter()
        step(coordinator, *args, **kwargs)
        seconds[_STEPS[name]] = time.perf_counter() - started

    steps = {name: partial(clock, name, getattr(sharded, name)) for name in _STEPS}
    with mock.patch.multiple(sharded, **steps):
        yield seconds


def _check(num_ok: int, rows: Rows) -> None:
    if num_ok != len(rows):
        raise RuntimeError(f"{num_ok:,} of {len(rows):,} pictures were loaded")
