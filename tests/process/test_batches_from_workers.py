"""Batches from worker processes: through the ring, whole, for as long as anybody looks at them."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from in_memory_datasets import (
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.training.ring import shared_ring
from tests.process.scripts import array_rows

METHODS = ["fork", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("spawn", "forkserver"))]
SIZE = 224  # a batch of eight is then over a megabyte, and is gathered in the ring


def images(**arguments: Any) -> InMemoryImageTextDataset:
    return InMemoryImageTextDataset(array_rows(48), image_size=(SIZE, SIZE), progress=False, **arguments)


def loader_of(dataset: Any, collate: Callable[..., Any] = collate_in_memory_images, **arguments: Any) -> Any:
    return DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=collate, **arguments)


def places_taken() -> int:
    ring = shared_ring()
    assert ring is not None
    return int(ring._table[:, 1:].any(axis=1).sum())


def wait_for_places(count: int) -> None:
    deadline = time.monotonic() + 30
    while places_taken() != count:
        assert time.monotonic() < deadline, f"{places_taken()} places are taken, expected {count}"
        time.sleep(0.05)


def right(batch: dict[str, Any]) -> bool:
    """Every picture of `array_rows` is filled with its own number."""
    pixels = torch.as_tensor(batch["images"]).reshape(len(batch["images"]), -1)
    expected = batch["indices"].to(pixels.dtype)[:, None]
    return bool((pixels == expected).all())


@pytest.mark.parametrize("method", METHODS)
def test_batches_that_are_held_stay_as_they_are(method: str) -> None:
    """All batches of two epochs, a slice and an array are held while others come and go."""
    with images() as dataset:
        loader = loader_of(dataset, multiprocessing_context=method, shuffle=True)
        held = [batch for _ in range(2) for batch in loader]
        arrays = [batch["images"][2:4].numpy() for batch in loader]
        for _ in range(2):
            assert all(right(batch) for batch in loader)
        assert all(right(batch) for batch in held)
        assert all(len(np.unique(picture)) == 1 for array in arrays for picture in array)
        assert places_taken() > 0
        del held, arrays
        assert places_taken() == 0


def test_batches_come_through_the_ring_and_are_plain_dicts() -> None:
    with images() as dataset:
        for batch in loader_of(dataset):
            assert type(batch) is dict
            assert batch["images"].is_contiguous(memory_format=torch.channels_last)
            assert places_taken() >= 1
            assert batch["captions"] == [f"row {i}" for i in batch["indices"].tolist()]
            batch["images"].fill_(0)  # a batch is the loop's own
        del batch
        assert all(right(batch) for batch in loader_of(dataset))


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_that_is_broken_off_leaves_no_place_taken(persistent: bool) -> None:
    with images() as dataset:
        loader = loader_of(dataset, persistent_workers=persistent, prefetch_factor=3)
        for _ in range(5):
            for batch in loader:
                assert right(batch)
                break
        del batch
        loader._iterator = None
        assert all(right(batch) for batch in loader_of(dataset))
        ring = shared_ring()
        assert ring is not None
        ring._bury_the_dead()
        assert places_taken() == 0


def kill_and_go_on(pid: int, batches: Iterator[dict[str, Any]]) -> None:
    """PyTorch raises as soon as it hears that a worker has ended, which can be here as well as there."""
    os.kill(pid, signal.SIGKILL)
    deque(batches, maxlen=0)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_named_and_leaves_nothing_behind(persistent: bool) -> None:
    with images() as dataset:
        # so many batches that none of them is the last one when the worker ends, however late it does
        loader = loader_of(dataset, persistent_workers=persistent, sampler=list(range(48)) * 100)
        batches = iter(loader)
        first = next(batches)
        # Once they have drawn ahead what they may, workers wait. One that dies within a lock of multiprocessing, as it
        # may while it is at work, leaves PyTorch waiting for that lock.
        wait_for_places(1 + loader.num_workers * loader.prefetch_factor)
        victim = batches._workers[0]
        with pytest.raises(RuntimeError, match=rf"worker \(pid\(?s?\)? ?{victim.pid}\)"):
            kill_and_go_on(victim.pid, batches)
        assert right(first)
        del batches, first, victim
        loader._iterator = None
        ring = shared_ring()
        assert ring is not None
        ring._bury_the_dead()
        assert places_taken() == 0
        assert all(right(batch) for batch in loader_of(dataset))


def _to_float(batch: torch.Tensor) -> torch.Tensor:
    return batch.float()


def _crop(image: torch.Tensor) -> torch.Tensor:
    return image[:, :200, :200]


@pytest.mark.parametrize("transforms", [{"batch_transform": _to_float}, {"transform": _crop}, {"output": "numpy"}])
def test_what_transforms_make_comes_through_the_ring(transforms: dict[str, Any]) -> None:
    with images(**transforms) as dataset:
        alone = next(iter(DataLoader(dataset, batch_size=8, collate_fn=collate_in_memory_images)))
        for i, batch in enumerate(loader_of(dataset)):
            assert type(batch["images"]) is type(alone["images"])
            assert batch["images"].dtype == alone["images"].dtype
            assert batch["images"].shape == alone["images"].shape
            assert i > 0 or np.array_equal(batch["images"], alone["images"])
            assert right(batch)
            assert places_taken() >= 1


def test_wrapped_datasets_come_through_the_ring_too() -> None:
    with images() as one, images() as other:
        subset = Subset(one, range(40, 8, -1))
        assert sum(int(batch["valid"].sum()) for batch in loader_of(subset) if right(batch)) == 32
        both = ConcatDataset([one, other])
        assert sum(int(batch["valid"].sum()) for batch in loader_of(both) if right(batch)) == 96


def test_a_collate_function_of_the_users_own_sends_the_ordinary_way() -> None:
    with images() as dataset:
        batches = list(loader_of(dataset, collate=_with_extra))
        assert all(right(batch) and batch["extra"] == 1 for batch in batches)
        assert places_taken() == 0


def _with_extra(samples: Any) -> dict[str, Any]:
    return {**collate_in_memory_images(samples), "extra": 1}


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_clips_come_through_the_ring(dtype: Any) -> None:
    rows = [
        {"audio": {"array": np.full(20_000 + 3000 * i, i / 64, np.float32), "sampling_rate": 16_000}, "caption": str(i)}
        for i in range(48)
    ]
    with InMemoryAudioTextDataset(rows, dtype=dtype, progress=False) as dataset:
        held = list(loader_of(dataset, collate=collate_in_memory_audio, shuffle=True))
        for batch in held:
            for clip, length, index in zip(batch["audio"], batch["lengths"], batch["indices"], strict=True):
                assert int(length) == 20_000 + 3000 * int(index)
                assert clip[:length].unique().tolist() == [int(index) / 64]
                assert not clip[length:].any()
        del held, batch, clip
        assert places_taken() == 0


def test_two_loaders_at_once_do_not_take_each_others_places() -> None:
    with images() as dataset:
        for one, other in zip(loader_of(dataset, shuffle=True), loader_of(dataset, shuffle=True), strict=True):
            assert right(one)
            assert right(other)
