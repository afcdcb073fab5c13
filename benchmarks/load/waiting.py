"""Training that begins while the dataset is still loading, on the quickstart's pictures and server."""

from __future__ import annotations

import inspect
import time
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.load.figures import Figures, spread
from benchmarks.load.ours import load_pictures
from benchmarks.load.plan import Plan
from demo.server import serve_demo
from in_memory_datasets import EpochSampler, InMemoryImageTextDataset, collate_in_memory_images

_LATENCY_SECONDS = 0.06
_NUM_EPOCHS = 5
_BATCH_SIZE = 32
# Who says in which order samples are wanted, `EpochSampler` beforehand and the DataLoader's own by asking; and how long
# all epochs compute, to how long the load takes. The first epoch ends no sooner than the load and the others
# follow it, so that at equal lengths no order of things reaches the bound, at twice the length the best one just does.
_CASES = (("EpochSampler", 1.0), ("EpochSampler", 2.0), ("EpochSampler", 4.0), ("shuffle=True", 4.0))


def measure_training(plan: Plan) -> Figures:
    """Load and train at once, and one after the other."""
    if "wait" not in inspect.signature(InMemoryImageTextDataset.__init__).parameters:
        return {"note": "this version has no wait=False, with which training begins while the dataset loads"}
    with serve_demo(latency_seconds=_LATENCY_SECONDS) as server:
        rows = server.image_rows(plan.num_photos)
        load_pictures(rows, num_threads=plan.num_threads).close()  # the server draws its pictures once
        turns: dict[tuple[str, float], list[Figures]] = {case: [] for case in _CASES}
        for _ in range(plan.slow_repeats):
            for case in _CASES:
                turns[case].append(_take_turn(rows, plan, *case))
                print(f"  {case}: {turns[case][-1]}", flush=True)
    return {
        "num_pictures": len(rows),
        "num_epochs": _NUM_EPOCHS,
        "batch_size": _BATCH_SIZE,
        "latency_ms": 1e3 * _LATENCY_SECONDS,
        "repeats": plan.slow_repeats,
        "rows": [
            {"sampler": sampler, "share": share, **{name: spread(turn[name] for turn in some) for name in some[0]}}
            for (sampler, share), some in turns.items()
        ],
    }


def _take_turn(rows: Any, plan: Plan, sampler: str, share: float) -> Figures:
    started = time.perf_counter()
    load_pictures(rows, num_threads=plan.num_threads).close()
    load = time.perf_counter() - started
    num_batches = -(-len(rows) // _BATCH_SIZE)
    step = share * load / (_NUM_EPOCHS * num_batches)

    started = time.perf_counter()
    with load_pictures(rows, num_threads=plan.num_threads, wait=False) as dataset:
        num_seen = 0
        epochs = EpochSampler(dataset) if sampler == "EpochSampler" else None
        for epoch in range(_NUM_EPOCHS):
            if epochs is not None:
                epochs.set_epoch(epoch)
            loader = DataLoader(
                dataset, _BATCH_SIZE, shuffle=epochs is None, sampler=epochs, collate_fn=collate_in_memory_images
            )
            for batch in loader:
                num_seen += int(batch["valid"].sum())
                time.sleep(step)  # what a GPU computes meanwhile, of which this machine has none
        dataset.wait()
        total = time.perf_counter() - started
        if num_seen != _NUM_EPOCHS * len(rows) or dataset.report.num_failed:
            raise ValueError(f"trained on {num_seen:,} samples, expected {_NUM_EPOCHS} times {len(rows):,}")
    compute = step * _NUM_EPOCHS * num_batches
    bound = 1.1 * max(load, compute) + compute / _NUM_EPOCHS
    return {
        "load_seconds": load,
        "compute_seconds": compute,
        "total_seconds": total,
        "bound_seconds": bound,
        "to_bound": total / bound,
    }
