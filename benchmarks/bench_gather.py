"""What serving from memory costs: against a bare copy of the same bytes, alternated in the same run.

    python -m benchmarks.bench_gather        # about five minutes

Measured are stock `DataLoader`s over datasets whose rows are made up (pixels and frames do not matter to a copy). The
bare copy is `numpy.copyto` of consecutive rows into one warm buffer, on one thread. Figures are medians over repeats.
Results go to benchmarks/results/gather/ as JSON; `make bench-report` makes the page of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from benchmarks.bench_quick import describe_machine
from in_memory_datasets import (
    DurationBatchSampler,
    EpochSampler,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)

Figures = dict[str, Any]
CAPTION = "a caption of some ten words, as they are in practice, "


class Pictures(Sequence[dict[str, Any]]):
    """Rows of pictures, made when they are read."""

    def __init__(self, num_samples: int, size: int) -> None:
        self.num_samples, self.size = num_samples, size

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, i: Any) -> dict[str, Any]:
        return {"image_url": np.full((self.size, self.size, 3), i % 251, np.uint8), "caption": f"{CAPTION}{i}"}


class Clips(Sequence[dict[str, Any]]):
    """Rows of clips of even lengths between two bounds, at 16 kHz, made when they are read."""

    def __init__(self, num_samples: int, seconds: tuple[float, float]) -> None:
        low, high = seconds
        self.lengths = np.random.default_rng(0).uniform(low * 16_000, high * 16_000, num_samples).astype(int)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: Any) -> dict[str, Any]:
        clip = {"array": np.full(self.lengths[i], 0.1, np.float32), "sampling_rate": 16_000}
        return {"audio": clip, "caption": f"{CAPTION}{i}"}


def load_pictures(num_samples: int, size: int = 224) -> InMemoryImageTextDataset:
    return InMemoryImageTextDataset(Pictures(num_samples, size), image_size=(size, size), progress=False)


def loader_of(dataset: Any, batch_size: int, **arguments: Any) -> DataLoader[Any]:
    collate = collate_in_memory_images if isinstance(dataset, InMemoryImageTextDataset) else collate_in_memory_audio
    return DataLoader(dataset, **{"batch_size": batch_size, "shuffle": True, "collate_fn": collate, **arguments})


def time_epoch(loader: DataLoader[Any]) -> float:
    """Take every batch once and drop it; give the seconds."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def time_copies(block: np.ndarray[Any, Any], rows_per_copy: int) -> float:
    """Copy all of a block, so many consecutive rows at a time, into one warm buffer; give the seconds."""
    buffer = np.ones_like(block[:rows_per_copy])
    start = time.perf_counter()
    for first in range(0, len(block), rows_per_copy):
        rows = block[first : first + rows_per_copy]
        np.copyto(buffer[: len(rows)], rows)
    return time.perf_counter() - start


def alternate(repeats: int, **timed: Callable[[], float]) -> dict[str, list[float]]:
    """Time several things in turn, again and again, after one turn that does not count."""
    for one in timed.values():
        one()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, one in timed.items():
            seconds[name].append(one())
    return seconds


def against_copy(seconds: dict[str, list[float]], num_bytes: int) -> Figures:
    """Sum up what was timed beside "copy": medians in GB/s, and the ratio of each turn's pair."""
    copies = seconds["copy"]
    figures: Figures = {"copy_gb_per_s": num_bytes / median(copies) / 1e9}
    for name, values in seconds.items():
        if name != "copy":
            ratios = sorted(copy / value for copy, value in zip(copies, values, strict=True))
            figures[name] = {
                "gb_per_s": num_bytes / median(values) / 1e9,
                "ratio": median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
            }
    return figures


def measure_images(repeats: int) -> list[Figures]:
    """Batches of three sizes, and what the copy shared by threads adds, on an idle machine and on a busy one."""
    rows = []
    with load_pictures(6144) as dataset:
        images = dataset._store.images
        assert images is not None
        for batch_size in (32, 256, 1024):
            for busy in (False, True):
                with other_processes(os.cpu_count() or 1 if busy else 0, all_but_one=True):
                    seconds = alternate(
                        repeats,
                        copy=lambda: time_copies(images, batch_size),  # noqa: B023 - called at once
                        shared=lambda: time_epoch(loader_of(dataset, batch_size)),  # noqa: B023
                        alone=lambda: with_threads(1, lambda: time_epoch(loader_of(dataset, batch_size))),  # noqa: B023
                    )
                rows.append({"batch_size": batch_size, "busy": busy, **against_copy(seconds, images.nbytes)})
                print(rows[-1], flush=True)
    return rows


def measure_audio(repeats: int) -> list[Figures]:
    """Ragged clips, padded: the bytes that count are those of the frames, not of the padding."""
    rows = []
    for seconds_of_clips, num_samples in (((1.0, 10.0), 3000), ((5.0, 30.0), 1000), ((0.5, 1.5), 12_000)):
        for dtype in ("float32", "int16"):
            clips = Clips(num_samples, seconds_of_clips)
            longest = seconds_of_clips[1]  # which the plan takes for all of them
            with InMemoryAudioTextDataset(clips, dtype=dtype, max_duration=longest, progress=False) as dataset:
                frames = np.full(int(dataset.lengths.sum()), 0.1, np.float32)  # zeros would be one page
                for batch_size in (32, 256):
                    per_batch = int(dataset.lengths.mean() * batch_size)
                    seconds = alternate(
                        repeats,
                        copy=lambda: time_copies(frames, per_batch),  # noqa: B023 - called at once
                        shared=lambda: time_epoch(loader_of(dataset, batch_size)),  # noqa: B023
                        alike=lambda: time_alike(dataset, per_batch / 16_000),  # noqa: B023
                    )
                    rows.append(
                        {
                            "clip_seconds": seconds_of_clips,
                            "dtype": dtype,
                            "batch_size": batch_size,
                            **against_copy(seconds, frames.nbytes),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def time_alike(dataset: InMemoryAudioTextDataset, max_batch_seconds: float) -> float:
    """Take an epoch in batches of clips of like length, which is planned meanwhile."""
    sampler = DurationBatchSampler(dataset, max_batch_seconds)
    return time_epoch(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_in_memory_audio))


def measure_overhead(repeats: int) -> Figures:
    """Microseconds that a batch of one sample takes above the bare copy of it; a loader over nothing for comparison."""
    with load_pictures(4000) as dataset:
        images = dataset._store.images
        assert images is not None
        seconds = alternate(
            repeats,
            copy=lambda: time_copies(images, 1),
            loader=lambda: time_epoch(loader_of(dataset, 1)),
            empty=lambda: time_epoch(DataLoader(_Nothing(4000), batch_size=1, shuffle=True, collate_fn=_hand_on)),
        )
    figures = {f"{name}_us": 1e6 * median(values) / 4000 for name, values in seconds.items()}
    above = [1e6 * (one - copy) / 4000 for one, copy in zip(seconds["loader"], seconds["copy"], strict=True)]
    return {**figures, "above_copy_us": median(above), "above_copy_range": [min(above), max(above)]}


class _Nothing:
    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def _hand_on(batch: Any) -> Any:
    return batch


def _collate_plainly(samples: Any) -> dict[str, Any]:
    """Collate as any function of a user's own: what it gives is sent the ordinary way."""
    return dict(collate_in_memory_images(samples))


def _to_float(images: torch.Tensor) -> torch.Tensor:
    return images.float()


def measure_workers(repeats: int) -> list[Figures]:
    """Batches through worker processes: by the ring, and the ordinary way."""
    rows = []
    for transform in (None, _to_float):
        rows_of_set = Pictures(4096, 224)
        arguments: Any = {"progress": False, "batch_transform": transform}
        with InMemoryImageTextDataset(rows_of_set, **arguments) as dataset:
            images = dataset._store.images
            assert images is not None
            for batch_size in (32, 256):
                for num_workers in (1, 2):
                    workers: Any = {"num_workers": num_workers, "persistent_workers": True}
                    ring = loader_of(dataset, batch_size, **workers)
                    plain = loader_of(dataset, batch_size, **workers, collate_fn=_collate_plainly)
                    seconds = alternate(
                        repeats,
                        copy=lambda: time_copies(images, batch_size),  # noqa: B023 - called at once
                        ring=lambda: time_epoch(ring),  # noqa: B023
                        ordinary=lambda: time_epoch(plain),  # noqa: B023
                    )
                    ring._iterator = plain._iterator = None
                    gains = [slow / fast for slow, fast in zip(seconds["ordinary"], seconds["ring"], strict=True)]
                    rows.append(
                        {
                            "batch_transform": "float" if transform else None,
                            "batch_size": batch_size,
                            "num_workers": num_workers,
                            "ring_is_times_faster": median(gains),
                            **against_copy(seconds, images.nbytes),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def measure_growth(repeats: int) -> dict[str, list[Figures]]:
    """Time per sample as datasets, batches, pictures and ranks grow."""
    growth: dict[str, list[Figures]] = {"num_samples": [], "batch_size": [], "image_size": [], "ranks": []}
    for size in (224, 64):
        growth["num_samples"] += measure_sizes(size, max(3, repeats // 2))
    print(growth["num_samples"], flush=True)
    with load_pictures(4096) as dataset:
        timed = {str(b): lambda b=b: time_warm_epoch(dataset, b) for b in (1, 8, 32, 128, 512, 2048)}
        for name, seconds in alternate(repeats, **timed).items():
            growth["batch_size"].append({"batch_size": int(name), "us_per_sample": 1e6 * median(seconds) / 4096})
        print(growth["batch_size"], flush=True)
        for num_ranks in (1, 2, 4):
            seconds = [time_ranks(dataset, num_ranks) for _ in range(repeats)]
            per_sample = [1e6 * one / (num_ranks * 4096) for one in seconds]
            growth["ranks"].append({"ranks": num_ranks, "us_per_sample_of_all": median(per_sample)})
        print(growth["ranks"], flush=True)
    for size in (32, 64, 128, 256, 512, 1024):
        num_samples = min(20_000, 600_000_000 // (3 * size * size))
        with load_pictures(num_samples, size) as dataset:
            images = dataset._store.images
            assert images is not None
            pair = alternate(
                repeats,
                copy=lambda: time_copies(images, 64),  # noqa: B023 - called at once
                shared=lambda: time_epoch(loader_of(dataset, 64)),
            )
            growth["image_size"].append({"image_size": size, **against_copy(pair, images.nbytes)})
    print(growth["image_size"], flush=True)
    return growth


def time_warm_epoch(dataset: Any, batch_size: int) -> float:
    """Take an epoch after one that does not count, which leaves memory for batches of this size."""
    time_epoch(loader_of(dataset, batch_size))
    return time_epoch(loader_of(dataset, batch_size))


def measure_sizes(size: int, repeats: int, batch_size: int = 256) -> list[Figures]:
    """Time per sample of datasets of 1,000 to 100,000 pictures, beside a bare copy of their rows in random order."""
    datasets = {}
    for num_samples in (1000, 10_000, 100_000):
        if InMemoryImageTextDataset.plan(Pictures(num_samples, size), image_size=(size, size)).fits:
            datasets[num_samples] = load_pictures(num_samples, size)
    # As many samples are taken of each, in turn, so that what else the machine does meets all alike.
    num_taken = max(datasets)
    timed: dict[str, Callable[[], float]] = {}
    for num_samples, dataset in datasets.items():
        timed[f"{num_samples} loader"] = lambda d=dataset: time_samples(d, batch_size, num_taken)
        timed[f"{num_samples} copy"] = lambda d=dataset: time_random_copies(d, batch_size, num_taken)
    per_sample = {name: 1e6 * median(values) / num_taken for name, values in alternate(repeats, **timed).items()}
    for dataset in datasets.values():
        dataset.close()
    return [
        {
            "image_size": size,
            "num_samples": num_samples,
            "us_per_sample": per_sample[f"{num_samples} loader"],
            "copy_us_per_sample": per_sample[f"{num_samples} copy"],
        }
        for num_samples in datasets
    ]


def time_samples(dataset: Any, batch_size: int, num_taken: int) -> float:
    """Take so many samples, in as many epochs as that needs."""
    start = time.perf_counter()
    for _ in range(num_taken // len(dataset)):
        time_epoch(loader_of(dataset, batch_size))
    return time.perf_counter() - start


def time_random_copies(dataset: Any, batch_size: int, num_taken: int) -> float:
    """Copy as many rows into one warm buffer, in random order, on one thread."""
    images = dataset._store.images
    buffer, order = np.ones_like(images[:batch_size]), np.random.default_rng(0).permutation(len(images))
    start = time.perf_counter()
    for _ in range(num_taken // len(images)):
        for first in range(0, len(images), batch_size):
            rows = order[first : first + batch_size]
            images.take(rows, axis=0, out=buffer[: len(rows)], mode="clip")
    return time.perf_counter() - start


def time_ranks(dataset: Any, num_ranks: int) -> float:
    """Let several processes take an epoch of the one copy at once; give the seconds of the slowest."""
    context = multiprocessing.get_context("fork")
    together, answers = context.Barrier(num_ranks), context.SimpleQueue()
    ranks = [context.Process(target=_be_rank, args=(dataset, together, answers)) for _ in range(num_ranks)]
    for rank in ranks:
        rank.start()
    slowest: float = max(answers.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    return slowest


def _be_rank(dataset: Any, together: Any, answers: Any) -> None:
    torch.set_num_threads(1)  # as torchrun has it
    time_epoch(loader_of(dataset, 256))
    together.wait()
    answers.put(time_epoch(loader_of(dataset, 256)))


def measure_endurance(num_epochs: int) -> Figures:
    """Many epochs: neither slower at the end nor larger."""
    process = psutil.Process()
    with load_pictures(3072) as dataset:
        loader = loader_of(dataset, 64)
        for _ in range(3):
            time_epoch(loader)
        before = process.memory_info().rss
        seconds = [time_epoch(loader) for _ in range(num_epochs)]
        grown = process.memory_info().rss - before
    first, last = median(seconds[:10]), median(seconds[-10:])
    return {"epochs": num_epochs, "last_ten_to_first_ten": last / first, "grown_bytes": grown, "seconds": seconds}


def measure_order(repeats: int) -> dict[str, Any]:
    """What an order costs that is a formula, and what batches of like length save."""
    rows = []
    for num_samples in (10_000, 1_000_000, 100_000_000):
        num_drawn = min(num_samples, 1_000_000)
        middle = {"seed": 0, "epoch": 0, "consumed": num_samples // 2, "num_samples": num_samples}
        seconds = alternate(
            repeats,
            draw=lambda: time_call(lambda: draw(num_samples, num_drawn)),  # noqa: B023 - called at once
            resume=lambda: time_call(lambda: resume(num_samples, middle)),  # noqa: B023 - called at once
        )
        rows.append(
            {
                "num_samples": num_samples,
                "us_per_index": 1e6 * median(seconds["draw"]) / num_drawn,
                "resume_us": 1e6 * median(seconds["resume"]),
            }
        )
    clips = _Lengths(100_000)
    plan = alternate(repeats, plan=lambda: time_call(lambda: len(DurationBatchSampler(clips, 600))))["plan"]
    sampler = DurationBatchSampler(clips, 600)
    batches = clips.lengths[: 32 * (len(clips) // 32)].reshape(-1, 32)
    return {
        "epoch_sampler": rows,
        "duration_sampler": {
            "num_clips": len(clips),
            "us_per_clip": 1e6 * median(plan) / len(clips),
            "padding_waste": sampler.padding_waste,
            "padding_waste_at_random": 1 - float(batches.sum() / (batches.max(axis=1).sum() * 32)),
        },
    }


def draw(num_samples: int, num_drawn: int) -> None:
    deque(islice(EpochSampler(range(num_samples)), num_drawn), maxlen=0)


def resume(num_samples: int, state: dict[str, int]) -> int:
    sampler = EpochSampler(range(num_samples))
    sampler.load_state_dict(state)
    return next(iter(sampler))


class _Lengths:
    """Lengths of clips of 1 to 30 seconds, most of them short."""

    sampling_rate, pad_to = 16_000, "longest"

    def __init__(self, num_clips: int) -> None:
        drawn = np.random.default_rng(0).uniform(0, np.log(30), num_clips)
        self.lengths = (16_000 * np.exp(drawn)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)


def time_call(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_threads(num_threads: int, timed: Callable[[], float]) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return timed()
    finally:
        torch.set_num_threads(before)


class other_processes:
    """Keep cores busy with something else for as long as the block lasts."""

    def __init__(self, num_cores: int, *, all_but_one: bool) -> None:
        self.num_processes = max(0, num_cores - 1) if all_but_one else num_cores

    def __enter__(self) -> None:
        spin = [sys.executable, "-c", "while True: pass"]
        self.processes = [subprocess.Popen(spin) for _ in range(self.num_processes)]

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "images": lambda options: measure_images(options.repeats),
    "audio": lambda options: measure_audio(options.repeats),
    "overhead": lambda options: measure_overhead(options.repeats),
    "workers": lambda options: measure_workers(max(3, options.repeats // 2)),
    "growth": lambda options: measure_growth(options.repeats),
    "order": lambda options: measure_order(options.repeats),
    "endurance": lambda options: measure_endurance(options.epochs),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the endurance run (default: 200)")
    parser.add_argument("--parts", default="", help=f"some of {','.join(PARTS)}, instead of all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gather")
    options = parser.parse_args()
    results_file = options.output / "results.json"
    wanted = set(filter(None, options.parts.split(",")))
    if unknown := wanted - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    # Some parts alone replace those parts of an earlier run, each with its own date.
    record = json.loads(results_file.read_text()) if wanted and results_file.exists() else {}
    for name, measure in PARTS.items():
        if not wanted or name in wanted:
            print(f"{name} …", flush=True)
            record[name] = {"machine": describe_machine(), "figures": measure(options)}
    options.output.mkdir(parents=True, exist_ok=True)
    results_file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"results: {results_file}")


if __name__ == "__main__":
    main()
