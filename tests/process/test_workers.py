"""DataLoader workers: a handle instead of the data, by every start method."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset, collate_in_memory_images
from tests.process.conftest import Script, result_of
from tests.process.scripts import array_rows

METHODS = ["fork", "spawn", "forkserver"]


def _look(dataset: InMemoryImageTextDataset, answers: Any) -> None:
    answers.put((os.fstat(dataset._store.samples.fd).st_ino, dataset[5]["caption"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_maps_the_memory_of_its_parent(method: str) -> None:
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    with InMemoryImageTextDataset(array_rows(10), image_size=(8, 8)) as dataset:
        worker = context.Process(target=_look, args=(dataset, answers))
        worker.start()
        assert answers.get() == (os.fstat(dataset._store.samples.fd).st_ino, "row 5")
        worker.join()
        worker.close()
    answers.close()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("persistent", [False, True])
def test_every_sample_comes_once_an_epoch_from_workers(method: str, persistent: bool) -> None:
    with InMemoryImageTextDataset(array_rows(50), image_size=(8, 8)) as dataset:
        loader = DataLoader(
            dataset,
            batch_size=8,
            shuffle=True,
            num_workers=2,
            collate_fn=collate_in_memory_images,
            multiprocessing_context=method,
            persistent_workers=persistent,
        )
        for _ in range(2):
            seen = [int(index) for batch in loader for index in batch["indices"]]
            assert sorted(seen) == list(range(50))
        loader._iterator = None  # ends persistent workers now


def test_random_captions_change_with_the_epoch_whatever_the_number_of_workers() -> None:
    rows = [{"image_url": np.zeros((2, 2, 3), np.uint8), "caption": [f"{i}a", f"{i}b", f"{i}c"]} for i in range(12)]

    def epochs(num_workers: int) -> list[list[str]]:
        torch.manual_seed(7)
        with InMemoryImageTextDataset(rows, image_size=(2, 2), captions="random") as dataset:
            loader = DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=collate_in_memory_images)
            return [[caption for batch in loader for caption in batch["captions"]] for _ in range(3)]

    alone, helped = epochs(0), epochs(2)
    assert alone == helped
    for captions in zip(*alone, strict=True):
        assert len(set(captions)) == 3


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_can_be_pinned(num_workers: int) -> None:
    """Where there is an accelerator, batches arrive in pinned memory; where there is none, torch warns and goes on."""
    with InMemoryImageTextDataset(array_rows(6), image_size=(8, 8)) as dataset:
        loader = DataLoader(
            dataset, batch_size=3, num_workers=num_workers, pin_memory=True, collate_fn=collate_in_memory_images
        )
        batches = list(loader)
    assert [batch["indices"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert all(batch["images"].is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert all(batch["images"].is_pinned() == torch.cuda.is_available() for batch in batches)


@pytest.mark.slow
def test_the_handle_of_a_gigabyte_is_small() -> None:
    """1 GB of clips, with captions and failures; what goes to a worker stays under 100 kB."""
    clip = {"array": np.zeros(16_000 * 30, np.float32), "sampling_rate": 16_000}
    rows = [{"audio": None if i % 10 == 9 else clip, "caption": "c" * 100} for i in range(600)]
    with InMemoryAudioTextDataset(rows) as dataset:
        assert dataset.nbytes > 10**9
        assert len(ForkingPickler.dumps(dataset)) < 100_000
        multiprocessing.resource_sharer.stop(timeout=5)


def test_a_pickle_opens_in_a_fresh_process_after_the_first_has_ended(tmp_path: Path, script: Script) -> None:
    path = str(tmp_path / "dataset.pickle")
    result_of(script("write_pickle", path=path, num_rows=20))
    assert result_of(script("open_pickle", path=path)) == {"length": 20, "caption": "row 3", "pixel": 3}


def test_a_pickle_leaves_the_rows_behind() -> None:
    rows = array_rows(4)
    rows[0]["unused"] = bytes(10**6)
    with InMemoryImageTextDataset(rows, image_size=(8, 8)) as dataset:
        assert len(pickle.dumps(dataset)) < 50_000
