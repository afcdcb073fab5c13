"""Parts of clips that are longer than what is served: which part, of what, and when another."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import AudioTextDataset, ConfigError, InMemoryAudioTextDataset, collate_in_memory_audio

RATE = 100
LENGTHS = [1000, 90, 250, 100, 103, 1000]  # frames; a window of one second has 100


class Ramps:
    """Rows of clips whose frames count up from 0 in thousandths, so that each says where it stood."""

    def __init__(self) -> None:
        self.num_read = 0

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, i: Any) -> dict[str, Any]:
        self.num_read += 1
        frames = np.arange(LENGTHS[i], dtype=np.float32) / 1000
        return {"audio": {"array": frames, "sampling_rate": RATE}, "caption": str(i)}


def load(rows: Any = None, **arguments: Any) -> InMemoryAudioTextDataset:
    arguments = {"target_sr": RATE, "max_duration": 1.0, "crop": "random", "progress": False, **arguments}
    return InMemoryAudioTextDataset(Ramps() if rows is None else rows, **arguments)


def start_of(clip: Any) -> int:
    """Tell where a part began; it must be of consecutive frames."""
    frames = np.rint(np.asarray(clip) * 1000).astype(int)
    assert (np.diff(frames) == 1).all()
    return int(frames[0])


def starts(dataset: Any, epoch: int) -> list[int]:
    dataset.set_epoch(epoch)
    return [start_of(sample["audio"]) for sample in dataset]


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_part_is_another_each_epoch_and_the_same_in_the_same(dtype: Any) -> None:
    with load(dtype=dtype) as dataset:
        epochs = [starts(dataset, epoch) for epoch in range(4)]
        assert [starts(dataset, epoch) for epoch in range(4)] == epochs
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert [len(sample["audio"]) for sample in dataset] == [100, 90, 100, 100, 100, 100]


def test_parts_begin_anywhere_where_a_whole_window_follows() -> None:
    with load() as dataset:
        found = np.array([starts(dataset, epoch) for epoch in range(400)])
    # Four windows are kept, and the rest of a clip is not: the last start leaves one whole window.
    assert (found.max(axis=0) <= [300, 0, 150, 0, 3, 300]).all()
    assert np.bincount(found[:, 4]).min() > 60
    assert np.bincount(found[:, 2] // 38, minlength=4).min() > 60


def test_without_an_epoch_each_serving_gives_another_part() -> None:
    with load() as dataset:
        assert len({start_of(dataset[0]["audio"]) for _ in range(10)}) > 5


def test_the_seed_decides() -> None:
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        with load() as dataset:
            found.append(starts(dataset, 0))
    assert found[0] == found[2] != found[1]


def test_the_start_is_served_unless_asked_otherwise() -> None:
    with load(crop="start") as dataset:
        assert starts(dataset, 0) == starts(dataset, 1) == [0] * 6
        assert dataset.nbytes < load().nbytes


def test_keep_duration_bounds_what_is_kept_and_where_parts_begin() -> None:
    with load(keep_duration=2.0) as dataset, load(keep_duration=100.0) as everything:
        found = np.array([starts(dataset, epoch) for epoch in range(300)])
        assert (found.max(axis=0) <= [100, 0, 100, 0, 3, 100]).all()
        assert found[:, 0].max() > 90
        assert max(starts(everything, epoch)[0] for epoch in range(100)) > 700


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_duration": 0.5}, "expected at least max_duration"),
        ({"keep_duration": 5.0, "crop": "start"}, 'keep_duration= is for crop="random"'),
        ({"keep_duration": 0}, "max_duration"),
        ({"keep_duration": float("nan")}, "max_duration"),
        ({"crop": "middle"}, "crop"),
    ],
)
def test_what_cannot_work_is_refused_before_a_row_is_read(arguments: dict[str, Any], message: str) -> None:
    rows = Ramps()
    with pytest.raises(ConfigError, match=message):
        load(rows, **arguments)
    assert rows.num_read == 0


def test_the_plan_counts_what_is_kept() -> None:
    def plan(**arguments: Any) -> int:
        found = InMemoryAudioTextDataset.plan(Ramps(), target_sr=RATE, max_duration=1.0, **arguments)
        return int(found.bytes_needed)

    start, windows, two = plan(), plan(crop="random"), plan(crop="random", keep_duration=2.0)
    assert windows - start == 6 * 3 * RATE * 4
    assert two - start == 6 * RATE * 4


def test_a_directory_serves_any_window(tmp_path: Path) -> None:
    with load() as dataset:
        dataset.save(tmp_path / "saved")
    with InMemoryAudioTextDataset.load(tmp_path / "saved") as whole:
        assert whole.lengths.tolist() == [400, 90, 250, 100, 103, 400]
    with InMemoryAudioTextDataset.load(tmp_path / "saved", crop="random", max_duration=0.5) as half:
        assert half.lengths.tolist() == [50] * 6
        found = np.array([starts(half, epoch) for epoch in range(200)])
        assert 300 < found[:, 0].max() <= 350
        assert np.unique(found[:, 4]).size > 45


@pytest.mark.parametrize("pad_to", ["longest", "max"])
def test_batches_and_samples_agree(pad_to: Any) -> None:
    with load(pad_to=pad_to) as dataset:
        dataset.set_epoch(7)
        batch = next(iter(DataLoader(dataset, batch_size=6, collate_fn=collate_in_memory_audio)))
        assert batch["audio"].shape == (6, 100)
        assert batch["lengths"].tolist() == dataset.lengths.tolist() == [100, 90, 100, 100, 100, 100]
        for row, length, sample in zip(batch["audio"], batch["lengths"], dataset, strict=True):
            assert torch.equal(row[:length], sample["audio"])
            assert not row[length:].any()


def test_lengths_are_those_that_are_served_failed_ones_too() -> None:
    rows = [Ramps()[0], {"audio": None, "caption": ""}, Ramps()[1]]
    with load(rows) as dataset:
        assert dataset.lengths.tolist() == [len(sample["audio"]) for sample in dataset] == [100, 100, 90]
        assert dataset.lengths.dtype == np.int64
        assert dataset.sampling_rate == RATE
    with load(rows, on_error="skip") as dataset:
        assert dataset.lengths.tolist() == [100, 90]


def test_the_twin_on_the_fly_serves_the_same_parts() -> None:
    torch.manual_seed(11)
    twin = AudioTextDataset(Ramps(), target_sr=RATE, max_duration=1.0, crop="random", keep_duration=5.0)
    with load(keep_duration=5.0) as dataset:
        for epoch in range(3):
            assert starts(twin, epoch) == starts(dataset, epoch)


def test_a_copy_by_pickle_draws_alike() -> None:
    with load() as dataset:
        dataset.set_epoch(3)
        expected = [start_of(sample["audio"]) for sample in dataset]
        copy: InMemoryAudioTextDataset = pickle.loads(pickle.dumps(dataset))
    with copy:
        assert [start_of(sample["audio"]) for sample in copy] == expected
