"""Small stores and rows, made without the stages before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec, Row, Source
from in_memory_datasets.store import Promotion, Store, StoreWriter

IMAGE_SPEC = ImageSpec((8, 6))
AUDIO_SPEC = AudioSpec(target_sr=100, max_duration=1.0, dtype="int16")


def make_rows(captions: Sequence[tuple[str, ...]]) -> list[Row]:
    return [Row(i, Source("path", f"/data/{i}.bin"), texts) for i, texts in enumerate(captions)]


def make_images(num_samples: int, spec: ImageSpec = IMAGE_SPEC, seed: int = 0) -> list[NDArray[np.uint8]]:
    width, height = spec.image_size
    return list(np.random.default_rng(seed).integers(0, 256, (num_samples, height, width, 3), np.uint8))


def make_clips(lengths: Sequence[int], spec: AudioSpec = AUDIO_SPEC, seed: int = 0) -> list[NDArray[Any]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(-1000, 1000, length).astype(spec.dtype) for length in lengths]


def make_store(
    spec: ImageSpec | AudioSpec,
    samples: Sequence[NDArray[Any] | None],
    *,
    captions: Sequence[tuple[str, ...]] | None = None,
    order: Sequence[int] | None = None,
    directory: Path | None = None,
) -> Store:
    """Write samples in the given order of arrival; None is a failure."""
    with StoreWriter(spec, directory=directory) as writer:
        rows = make_rows(captions or [(f"caption {i}",) for i in range(len(samples))])
        writer.add_rows(rows)
        for slot in range(len(samples)) if order is None else order:
            sample = samples[slot]
            if sample is None:
                writer.failed(Failure(slot, f"/data/{slot}.bin", "fetch", "not_found", "there is no such file", "", 1))
            else:
                writer.loaded(slot, writer.put(slot, sample))
        return writer.finish()


def check_threads_agree(decode: Callable[[bytes], NDArray[Any]], data: Sequence[bytes], num_threads: int = 4) -> None:
    """Decode everything once alone and then in every thread at once: all must agree bit for bit."""
    alone = [decode(each) for each in data]

    def decode_all(_: int) -> list[NDArray[Any]]:
        return [decode(each) for each in data]

    with ThreadPoolExecutor(num_threads) as threads:
        for results in threads.map(decode_all, range(num_threads)):
            assert all(np.array_equal(one, other) for one, other in zip(alone, results, strict=True))


def make_encoded_store(
    spec: ImageSpec | AudioSpec,
    samples: Sequence[bytes | None],
    *,
    num_frames: int = 0,
    num_decoded: int = 0,
    directory: Path | None = None,
) -> Store:
    """Write bytes for encoded samples; the first `num_decoded` are decoded, to nothing but their length."""

    def decode(encoded: memoryview) -> NDArray[Any]:
        if isinstance(spec, ImageSpec):
            return np.full((spec.image_size[1], spec.image_size[0], 3), len(encoded), np.uint8)
        return np.full(num_frames, len(encoded), spec.dtype)

    with StoreWriter(spec, encoded=True, directory=directory) as writer:
        writer.add_rows(make_rows([(f"caption {i}",) for i in range(len(samples))]))
        for slot, sample in enumerate(samples):
            if sample is None:
                writer.failed(Failure(slot, f"/data/{slot}.bin", "fetch", "not_found", "there is no such file", "", 1))
            else:
                writer.loaded(slot, writer.put(slot, np.frombuffer(sample, np.uint8), num_frames))
        return writer.finish(Promotion(num_decoded=num_decoded, decode=decode) if num_decoded else None)


def damage(data: bytes, draw: np.random.Generator) -> bytes:
    """Alter, drop, insert, swap or cut some bytes."""
    changed = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        # As often among the samples, which come last, as in the long header.
        first = max(0, len(changed) - 500) if draw.integers(0, 2) else 0
        at = int(draw.integers(first, max(1, len(changed))))
        length = int(draw.integers(1, 20))
        kind = draw.integers(0, 6)
        if kind == 0:
            changed[at : at + 1] = bytes([int(draw.integers(0, 256))])
        elif kind == 1:
            changed[at : at + length] = draw.bytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = draw.bytes(length)
        elif kind == 4:
            other = int(draw.integers(0, max(1, len(changed))))
            changed[at : at + length], changed[other : other + length] = (
                changed[other : other + length],
                changed[at : at + length],
            )
        else:
            del changed[at:]
    return bytes(changed)
