"""Training on what has arrived: the same batches as of a dataset that is all there, and an end that is told."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import (
    EpochSampler,
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.errors import ConfigError, LoadError, StoreError
from tests.process.conftest import MediaServer

LOOPBACK = FetchOptions(allow_private_addresses=True, retries=0)
NUM_ROWS = 90


def make_rows(server: MediaServer, kind: str = "png", num_rows: int = NUM_ROWS) -> list[dict[str, Any]]:
    """Rows of which some share a source, one has none and one is not found."""
    server.broken = {f"/7.{kind}"}
    rows = [{"media": f"{server.url}/{i % 60}.{kind}", "caption": [f"{i}a", f"{i}b"]} for i in range(num_rows)]
    rows[11]["media"] = ""
    return rows


def load(rows: Any, kind: str = "png", **arguments: Any) -> Any:
    cls: Any = InMemoryImageTextDataset if kind == "png" else InMemoryAudioTextDataset
    columns = {"img_col": "media", "image_size": (16, 16)} if kind == "png" else {"audio_col": "media"}
    return cls(rows, **{**columns, "fetch": LOOPBACK, "progress": False, **arguments})


def batches_of(dataset: Any, kind: str, *, epochs: int = 2, **arguments: Any) -> list[dict[str, Any]]:
    collate = collate_in_memory_images if kind == "png" else collate_in_memory_audio
    sampler = EpochSampler(dataset, seed=5)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler, collate_fn=collate, **arguments)
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found += list(loader)
    return found


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name], name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["png", "wav"])
def test_batches_are_those_of_a_dataset_that_is_all_there(server: MediaServer, kind: str, workers: int) -> None:
    rows = make_rows(server, kind)
    torch.manual_seed(0)
    with load(rows, kind, captions="random") as whole:
        expected = batches_of(whole, kind)
    torch.manual_seed(0)
    with load(rows, kind, captions="random", wait=False) as dataset:
        assert_same(batches_of(dataset, kind, num_workers=workers), expected)
        report = dataset.wait()
        assert (report.num_samples, report.num_failed, dataset.progress) == (NUM_ROWS, 3, 1.0)
        assert dataset.failed_indices == [7, 11, 67]


def test_it_returns_before_anything_was_answered_and_samples_are_waited_for(server: MediaServer) -> None:
    server.stalled_paths = {f"/{i}.png" for i in range(60)}
    with load(make_rows(server), wait=False) as dataset:
        assert len(dataset) == NUM_ROWS
        assert server.asked.wait(60)
        assert dataset.progress < 0.1
        with pytest.raises(TimeoutError, match="goes on loading"):
            dataset.wait(timeout=0.01)
        threading.Timer(0.2, server.release.set).start()
        assert int(dataset[20]["image"][0, 0, 0]) == 20
        assert dataset.wait().num_ok == NUM_ROWS - 3


def test_a_sample_that_is_asked_for_is_loaded_before_the_others(server: MediaServer) -> None:
    rows = [{"media": f"{server.url}/{i}.png", "caption": ""} for i in range(250)]
    server.stalled_paths = {"/0.png"}  # which keeps the single connection busy until somebody waits
    fetch = FetchOptions(allow_private_addresses=True, concurrency=1, per_host=1)
    with load(rows, wait=False, fetch=fetch, num_threads=1) as dataset:
        assert server.asked.wait(60)
        threading.Timer(0.2, server.release.set).start()
        assert int(dataset[249]["image"][0, 0, 0]) == 249
        assert server.requests.index("/249.png") < 100
        dataset.wait()


def test_samples_are_loaded_in_the_order_of_the_sampler(server: MediaServer) -> None:
    rows = [{"media": f"{server.url}/{i}.png", "caption": ""} for i in range(250)]
    fetch = FetchOptions(allow_private_addresses=True, concurrency=1, per_host=1)
    server.stalled_paths = {"/0.png"}
    with load(rows, wait=False, fetch=fetch, num_threads=1) as dataset:
        assert server.asked.wait(60)
        wanted = [f"/{i}.png" for i in EpochSampler(dataset, seed=3)]
        server.release.set()
        dataset.wait()
    begun_before = set(server.requests[:38])  # by number, before the sampler was there
    rest = [path for path in server.requests if path not in begun_before]
    assert rest == [path for path in wanted if path not in begun_before]


def test_the_store_in_a_cache_is_the_same_to_the_bit(server: MediaServer, tmp_path: Path) -> None:
    rows = make_rows(server, "wav")
    for name, wait in (("one", True), ("two", False)):
        with load(rows, "wav", wait=wait, cache_dir=tmp_path / name) as dataset:
            batches_of(dataset, "wav", epochs=1)
            assert dataset.wait().num_ok == NUM_ROWS - 3
    (one,), (two,) = ([entry for entry in (tmp_path / name).iterdir() if entry.is_dir()] for name in ("one", "two"))
    for name in ("samples.safetensors", "rows.arrow", "manifest.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_load_that_fails_says_so_to_whoever_reads_or_waits(server: MediaServer) -> None:
    rows = [{"media": f"{server.url}/no.png", "caption": ""} for _ in range(20)]
    server.broken = {"/no.png"}
    with load(rows, wait=False) as dataset:
        with pytest.raises(LoadError, match="0 of 20 samples loaded: 20 http_404"):
            dataset.wait()
        with pytest.raises(LoadError, match="0 of 20 samples loaded"):
            _ = dataset.report


def test_with_on_error_raise_the_first_failure_ends_the_load(server: MediaServer) -> None:
    with load(make_rows(server), wait=False, on_error="raise") as dataset, pytest.raises(LoadError, match="row"):
        dataset.wait()


def test_closing_ends_a_load_that_goes_on(server: MediaServer, tmp_path: Path) -> None:
    server.stalled_paths = {f"/{i}.png" for i in range(20, 60)}
    dataset = load(make_rows(server), wait=False, cache_dir=tmp_path)
    assert dataset[3]["caption"] == "3a"
    dataset.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-memory-datasets-load")]
    with pytest.raises(StoreError):
        dataset[3]
    server.release.set()
    server.stalled_paths = set()
    num_before = len(server.requests)
    with load(make_rows(server), cache_dir=tmp_path) as again:  # goes on from there
        assert again.report.num_ok == NUM_ROWS - 3
    assert "/3.png" not in server.requests[num_before:]


def test_pickled_it_is_the_finished_dataset(server: MediaServer) -> None:
    with load(make_rows(server), wait=False) as dataset, pickle.loads(pickle.dumps(dataset)) as copy:
        assert_same(batches_of(copy, "png"), batches_of(dataset, "png"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"on_error": "skip"}, "on_error"),
        ({"max_samples": "auto"}, "max_samples"),
        ({"storage": "encoded"}, "storage"),
    ],
)
def test_what_is_known_at_the_end_alone_cannot_be_asked_for_before(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"wait=False.*{reason}"):
        load([{"media": "a.png", "caption": ""}], wait=False, **arguments)


def test_rows_that_come_in_order_alone_cannot_be_loaded_in_another() -> None:
    with pytest.raises(ConfigError, match=r"wait=False.*pass a Dataset"):
        load(iter([{"media": "a.png", "caption": ""}]), wait=False)
