"""Decoding on access: a stock `DataLoader` over an encoded store, against the bare decode loop, in turn."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bench_gather import Figures, alternate, loader_of, time_epoch
from benchmarks.encoded.samples import RATE, SIZE, Corpora
from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.decode import decode_image, open_clip
from in_memory_datasets.schema import AudioSpec, ImageSpec

QUALITY = 90  # of the pictures that are recompressed
SECONDS = (10.0, 30.0)  # of the clips

Decode = Callable[[bytes], NDArray[Any]]


def measure_access(corpora: Corpora, *, batch_sizes: tuple[int, ...], num_samples: int, repeats: int) -> Figures:
    """Compare photographs as they were fetched and recompressed, and clips of two lengths.

    Args:
        num_samples: Pictures of an epoch, and clips of `SECONDS[0]`; of longer ones fewer.
    """
    rows: list[Figures] = []
    photos = corpora.photos(num_samples)
    for what, recompress in (("photos", None), ("recompressed", ("jpeg", QUALITY))):
        with InMemoryImageTextDataset(
            photos, image_size=SIZE, storage="encoded", recompress=recompress, progress=False
        ) as images:
            rows += _compare(what, images, batch_sizes, repeats)
    for seconds in SECONDS:
        clips = corpora.clips_of(seconds, max(max(batch_sizes), round(num_samples * SECONDS[0] / seconds)))
        with InMemoryAudioTextDataset(
            clips, target_sr=RATE, max_duration=seconds, storage="encoded", progress=False
        ) as audio:
            rows += _compare(f"{seconds:g} s", audio, batch_sizes, repeats)
    return {"num_threads": num_threads(), "quality": QUALITY, "rows": rows}


def num_threads() -> int:
    """Give how many threads decode, in the loader and in the bare loop."""
    return min(os.cpu_count() or 1, torch.get_num_threads())


def _compare(what: str, dataset: Any, batch_sizes: tuple[int, ...], repeats: int) -> list[Figures]:
    kept, decode, shape, dtype = bare_parts(dataset)
    rows = []
    for batch_size in batch_sizes:
        buffer = np.ones((min(batch_size, len(kept)), *shape), dtype)
        seconds = alternate(
            repeats,
            bare=lambda: time_bare(kept, decode, buffer),  # noqa: B023 - called at once
            loader=lambda: time_epoch(loader_of(dataset, batch_size)),  # noqa: B023
        )
        ratios = sorted(bare / loader for bare, loader in zip(seconds["bare"], seconds["loader"], strict=True))
        rows.append(
            {
                "what": what,
                "batch_size": batch_size,
                "kept_bytes": round(sum(map(len, kept)) / len(kept)),
                "bare_per_s": len(kept) / median(seconds["bare"]),
                "loader_per_s": len(kept) / median(seconds["loader"]),
                "ratio": median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
            }
        )
        print(rows[-1], flush=True)
    return rows


def bare_parts(dataset: Any) -> tuple[list[bytes], Decode, tuple[int, ...], Any]:
    """Give what the bare loop is made of: kept bytes, what decodes them, and the shape and dtype of a sample."""
    store, spec = dataset._store, dataset._store.spec
    kept = [store.sample(slot).tobytes() for slot in range(store.num_decoded, store.num_samples)]
    if isinstance(spec, ImageSpec):
        return kept, lambda data: decode_image(data, spec=spec), (spec.image_size[1], spec.image_size[0], 3), np.uint8
    assert isinstance(spec, AudioSpec)
    num_frames = spec.max_frames
    return kept, lambda data: open_clip(data, spec=spec, num_frames=num_frames), (num_frames,), np.float32


def time_bare(kept: list[bytes], decode: Decode, buffer: NDArray[Any]) -> float:
    """Decode all samples in random order into one warm batch, with a pool of threads; give the seconds."""

    def put(place: int, number: int) -> None:
        buffer[place] = decode(kept[number])

    order = torch.randperm(len(kept)).tolist()
    with ThreadPoolExecutor(num_threads()) as pool:
        deque(pool.map(int, range(num_threads())), maxlen=0)  # the threads are there
        start = time.perf_counter()
        for first in range(0, len(order), len(buffer)):
            batch = order[first : first + len(buffer)]
            deque(pool.map(put, range(len(batch)), batch), maxlen=0)
        return time.perf_counter() - start
