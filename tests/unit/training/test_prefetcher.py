"""Batches brought to a device ahead of their use; here the device is the processor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import (
    DevicePrefetcher,
    EpochSampler,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)


class Pair(NamedTuple):
    media: torch.Tensor
    text: list[str]


def image_loader(num_samples: int = 10, sampler: Any = None) -> DataLoader[Any]:
    rows = [{"image_url": np.full((4, 4, 3), i, np.uint8), "caption": str(i)} for i in range(num_samples)]
    dataset = InMemoryImageTextDataset(rows, image_size=(4, 4), progress=False)
    return DataLoader(dataset, batch_size=3, sampler=sampler, collate_fn=collate_in_memory_images)


def clip_loader() -> DataLoader[Any]:
    rows = [
        {"audio": {"array": np.full(100 * (i + 1), 0.5), "sampling_rate": 100}, "caption": str(i)} for i in range(10)
    ]
    dataset = InMemoryAudioTextDataset(rows, target_sr=100, progress=False)
    return DataLoader(dataset, batch_size=3, collate_fn=collate_in_memory_audio)


@pytest.mark.parametrize("make", [image_loader, clip_loader])
def test_every_epoch_is_that_of_the_loader(make: Any) -> None:
    loader = make()
    batches = DevicePrefetcher(loader, "cpu")
    assert len(batches) == len(loader) == 4
    for _ in range(2):
        for batch, other in zip(batches, loader, strict=True):
            assert batch.keys() == other.keys()
            assert all(np.array_equal(batch[name], other[name]) for name in batch)
    loader.dataset.close()


def test_batches_of_any_build_keep_it() -> None:
    ones = torch.ones(2)
    batch = {"pair": Pair(ones, ["a", "b"]), "list": [ones, (ones, 3)], "text": "as it is", "none": None}
    (moved,) = DevicePrefetcher([batch], "meta")
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].text == ["a", "b"]
    assert isinstance(moved["list"][1], tuple)
    tensors = [moved["pair"].media, moved["list"][0], moved["list"][1][0]]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved["list"][1][1], moved["text"], moved["none"]) == (3, "as it is", None)


def test_what_has_no_length_has_none_here() -> None:
    batches = DevicePrefetcher((torch.ones(i) for i in range(3)), "cpu")
    with pytest.raises(TypeError, match="generator has no length"):
        len(batches)
    assert [len(batch) for batch in batches] == [0, 1, 2]


def test_a_device_that_cannot_be_used_is_named_at_once() -> None:
    with pytest.raises(RuntimeError, match="abacus"):
        DevicePrefetcher([], "abacus")


def test_an_error_of_the_loader_comes_through() -> None:
    def break_off() -> Iterator[torch.Tensor]:
        yield torch.ones(1)
        raise OSError("the disk is gone")

    batches = iter(DevicePrefetcher(break_off(), "cpu"))
    assert next(batches).tolist() == [1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_a_state_counts_what_was_handed_out(num_batches: int) -> None:
    """No batch is taken ahead, so that the next run goes on with the very next sample."""
    sampler = EpochSampler(range(10), seed=4)
    loader = image_loader(sampler=sampler)
    batches = iter(DevicePrefetcher(loader, "cpu"))
    seen = [i for batch in itertools.islice(batches, num_batches) for i in batch["indices"].tolist()]
    state = sampler.state_dict()
    assert state["consumed"] == len(seen) == 3 * num_batches
    sampler = EpochSampler(range(10))
    sampler.load_state_dict(state)
    rest = DataLoader(loader.dataset, batch_size=3, sampler=sampler, collate_fn=collate_in_memory_images)
    seen += [i for batch in DevicePrefetcher(rest, "cpu") for i in batch["indices"].tolist()]
    assert sorted(seen) == list(range(10))
    loader.dataset.close()  # type: ignore[attr-defined]
