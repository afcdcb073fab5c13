"""A dataset that serves a share of a cluster's samples, which changes from epoch to epoch."""

from __future__ import annotations

import pickle
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from in_memory_datasets import (
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.errors import ConfigError
from in_memory_datasets.store import Block, Pieces
from in_memory_datasets.training import in_memory
from in_memory_datasets.training.in_memory import DESCRIBED
from in_memory_datasets.training.media import DeviceMedia

NUM_SAMPLES = 20

IMAGE: dict[str, Any] = {"image_size": (8, 6), "progress": False}
AUDIO: dict[str, Any] = {"target_sr": 100, "max_duration": 1.0, "progress": False}


def picture_rows(numbers: range) -> list[dict[str, Any]]:
    return [
        {"image_url": np.full((6, 8, 3), i, np.uint8), "caption": [f"first {i}", f"second {i}", f"third {i}"]}
        for i in numbers
    ]


def clip_rows(numbers: range) -> list[dict[str, Any]]:
    return [
        {"audio": {"array": np.full(5 + i, i / 100), "sampling_rate": 100}, "caption": f"caption {i}"} for i in numbers
    ]


class TwoDivisions:
    """A share of two stores, of which the rows 0 to 9 are served first, and then others; sent on as a handle.

    Args:
        stores: Of the rows 0 to 11 and 12 to 19.
        counter: How often it was divided, in memory that all processes see.
    """

    ROWS = (list(range(10)), [19, 3, 12, 0, 11, 15])

    def __init__(self, stores: Any, counter: Block | None = None) -> None:
        reduction.ForkingPickler.register(TwoDivisions, lambda share: (TwoDivisions, (share.stores, share.counter)))
        self.stores = stores
        self.counter = Block.anonymous("divisions") if counter is None else counter
        self._value = self.counter.counters(1)

    def current(self, known: int) -> tuple[int, Pieces, NDArray[np.int64]] | None:
        number = int(self._value[0]) + 1
        if number == known:
            return None
        pieces = Pieces(self.stores, [np.arange(12), np.arange(12, NUM_SAMPLES)])
        return number, pieces, np.array(self.ROWS[number - 1])

    def set_epoch(self, epoch: int) -> None:
        self._value[0] = epoch

    def close(self) -> None:
        self._value = np.zeros(1, np.int32)
        self.counter.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def shared(cls: Any, rows: Any, **kwargs: Any) -> Any:
    """Make a dataset of a share whose two stores are those of two datasets."""
    halves = [cls(rows(part), **kwargs) for part in (range(12), range(12, NUM_SAMPLES))]
    share = TwoDivisions([half._whole for half in halves])
    return cls._of_share(halves[0]._request, halves[0]._serving, share)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_follow_the_share_also_in_workers_that_persist(num_workers: int) -> None:
    """After set_epoch the same loader serves other rows, with their own numbers, pixels and captions."""
    with shared(InMemoryImageTextDataset, picture_rows, **IMAGE) as dataset:
        loader = DataLoader(
            dataset,
            batch_size=4,
            sampler=range(6),
            collate_fn=collate_in_memory_images,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        for epoch in range(2):
            dataset.set_epoch(epoch)
            rows = TwoDivisions.ROWS[epoch]
            assert len(dataset) == len(rows)
            batches = list(loader)
            assert torch.cat([batch["indices"] for batch in batches]).tolist() == rows[:6]
            assert torch.cat([batch["images"] for batch in batches])[:, 0, 0, 0].tolist() == rows[:6]
            assert [text for batch in batches for text in batch["captions"]] == [f"first {i}" for i in rows[:6]]
        del loader


def test_clips_follow_the_share() -> None:
    """Clips of both stores come with their lengths, and `lengths` says them beforehand."""
    with shared(InMemoryAudioTextDataset, clip_rows, **AUDIO) as dataset:
        for epoch in range(2):
            dataset.set_epoch(epoch)
            rows = TwoDivisions.ROWS[epoch]
            assert dataset.lengths.tolist() == [5 + i for i in rows]
            batch = collate_in_memory_audio(dataset.__getitems__(range(len(rows))))
            assert batch["lengths"].tolist() == [5 + i for i in rows]
            for row, clip in zip(rows, batch["audio"], strict=True):
                np.testing.assert_allclose(clip[: 5 + row], row / 100, atol=1e-6)
                assert not clip[5 + row :].any()


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
def test_encoded_clips_are_decoded_from_either_store(storage: str) -> None:
    """Clips that lie encoded in several stores are served as those that lie decoded."""
    with shared(InMemoryAudioTextDataset, clip_rows, dtype="int16", storage=storage, **AUDIO) as dataset:
        dataset.set_epoch(1)
        samples = [dataset[i] for i in range(len(dataset))]
        for row, sample in zip(TwoDivisions.ROWS[1], samples, strict=True):
            assert sample["index"] == row
            np.testing.assert_allclose(sample["audio"], row / 100, atol=1e-4)


def test_random_captions_depend_on_row_and_epoch_alone() -> None:
    """A row is given the caption of the epoch, whichever position it has, and however often it was served."""
    with (
        shared(InMemoryImageTextDataset, picture_rows, captions="random", **IMAGE) as dataset,
        InMemoryImageTextDataset(picture_rows(range(NUM_SAMPLES)), captions="random", **IMAGE) as alone,
    ):
        for epoch in (0, 1, 0, 1):
            dataset.set_epoch(epoch)
            alone.set_epoch(epoch)
            for position, row in enumerate(TwoDivisions.ROWS[epoch]):
                assert dataset[position]["caption"] == alone[row]["caption"]


def test_a_share_is_saved_and_pickled_as_a_dataset_of_its_own(tmp_path: Path) -> None:
    """Saved, and pickled plainly, it holds the rows of its stores, and no longer follows anybody."""
    with shared(InMemoryImageTextDataset, picture_rows, **IMAGE) as dataset:
        dataset.save(tmp_path / "saved", progress=False)
        data = pickle.dumps(dataset)
        assert dataset.resident_fraction == dataset.warm(progress=False) == 1.0
    with InMemoryImageTextDataset.load(tmp_path / "saved", verify=True) as saved:
        assert [saved[i]["caption"] for i in range(len(saved))] == [f"first {i}" for i in range(NUM_SAMPLES)]
    with pickle.loads(data) as copy:
        assert copy._share is None
        assert [copy[i]["index"] for i in range(len(copy))] == TwoDivisions.ROWS[0]


@pytest.mark.parametrize(
    ("cls", "rows", "kwargs"),
    [
        (InMemoryImageTextDataset, picture_rows, IMAGE),
        (InMemoryAudioTextDataset, clip_rows, AUDIO),
        (InMemoryAudioTextDataset, clip_rows, {**AUDIO, "dtype": "int16"}),
    ],
    ids=["images", "clips", "short clips"],
)
def test_on_a_device_the_share_is_followed_too(
    monkeypatch: pytest.MonkeyPatch, cls: Any, rows: Any, kwargs: dict[str, Any]
) -> None:
    """A copy on a device, which is of all stores, is made anew when other rows are served."""
    with shared(cls, rows, **kwargs) as dataset:
        expected = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            expected.append(dataset.__getitems__(range(6)))
        dataset.set_epoch(0)
        monkeypatch.setattr(in_memory, "_CPU", torch.device("meta"))  # so that the processor is taken for a device
        there = dataset.to("cpu")
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batch, media = there.__getitems__(range(6)), "images" if cls is InMemoryImageTextDataset else "audio"
            assert isinstance(there._media, DeviceMedia)
            assert torch.equal(batch.indices, expected[epoch].indices)
            assert torch.equal(getattr(batch, media), getattr(expected[epoch], media))


class AfterALook(TwoDivisions):
    """A share that is divided anew at the first look but so many, and then lies in its stores in another order."""

    looks_left = -1

    def current(self, known: int) -> tuple[int, Pieces, NDArray[np.int64]] | None:
        if self.looks_left == 0:
            self.set_epoch(1)
        self.looks_left -= 1
        served = super().current(known)
        if served is None or served[0] == 1:
            return served
        rows = [np.arange(12, NUM_SAMPLES), np.arange(12)]
        return served[0], Pieces(self.stores[::-1], rows), np.argsort(np.concatenate(rows))[served[2]]


def test_a_batch_is_of_one_division_even_if_another_comes_meanwhile(tmp_path: Path) -> None:
    """From files too, of which is noted what was read: each batch is what was served when it began."""
    halves = [
        InMemoryImageTextDataset(picture_rows(part), cache_dir=tmp_path, **IMAGE)
        for part in (range(12), range(12, NUM_SAMPLES))
    ]
    share = AfterALook([half._whole for half in halves])
    with InMemoryImageTextDataset._of_share(halves[0]._request, halves[0]._serving, share) as dataset:
        positions = list(range(6))
        dataset.__getitems__(positions)  # so that all of it was read before
        share.looks_left = 1
        for rows in TwoDivisions.ROWS:
            batch = dataset.__getitems__(positions)
            assert batch.indices.tolist() == rows[:6]
            assert batch.images[:, 0, 0, 0].tolist() == rows[:6]


def test_what_is_the_clusters_to_do_is_refused() -> None:
    """What failed is loaded again by the cluster, and a dataset of a share says so."""
    with (
        shared(InMemoryImageTextDataset, picture_rows, **IMAGE) as dataset,
        pytest.raises(ConfigError, match="retry_failed"),
    ):
        dataset.retry_failed()


def test_arguments_can_be_understood_without_loading() -> None:
    """With a `wait` of its own a dataset only checks its arguments: a source that is not there is not asked for."""
    described = InMemoryImageTextDataset([{"image_url": "/nowhere.jpg", "caption": ""}], wait=DESCRIBED, **IMAGE)
    assert described._request.rows.num_rows == 1
    with pytest.raises(ConfigError):
        InMemoryImageTextDataset([{"url": ""}], wait=DESCRIBED, **IMAGE)
