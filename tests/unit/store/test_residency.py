"""What of a dataset lies in memory is told, brought there and kept there; a file that is cut short is an error."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset, StoreError
from in_memory_datasets.schema import ImageSpec
from in_memory_datasets.store import Block, Store, bring_in, count_resident
from tests.lacking import lacks
from tests.making import make_encoded_store, make_images, make_store

SPEC = ImageSpec((64, 64))
NUM_IMAGES = 2000
NUM_BYTES = NUM_IMAGES * 64 * 64 * 3


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a dataset of 25 MB, which nobody has open."""
    place = tmp_path / "saved"
    place.mkdir()
    make_store(SPEC, make_images(NUM_IMAGES, SPEC), directory=place).close()
    return place


def drop_from_page_cache(place: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        lacks(f"{place} is a {kind}, whose files lie nowhere but in memory")
    for path in place.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def locked_bytes() -> int:
    line = re.search(r"^VmLck:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert line is not None
    return 1024 * int(line[1])


def test_what_was_dropped_from_the_page_cache_is_seen_and_brought_back(saved: Path) -> None:
    drop_from_page_cache(saved)
    with InMemoryImageTextDataset.load(saved) as dataset:
        before = dataset.resident_fraction
        assert before < 0.5  # its rows, and what the kernel reads ahead
        assert dataset.warm() == dataset.resident_fraction == 1.0


def test_a_dataset_in_memory_is_resident_though_failed_samples_are_holes() -> None:
    images = make_images(9, SPEC)
    rows: list[dict[str, Any]] = [{"image_url": image, "caption": ""} for image in images]
    rows[3]["image_url"] = rows[4]["image_url"] = b"no picture"
    with InMemoryImageTextDataset(rows, image_size=(64, 64), progress=False) as dataset:
        assert dataset.resident_fraction == 1.0
        assert dataset.warm() == 1.0


def test_a_part_that_is_read_comes_from_the_disk_as_one_piece(saved: Path) -> None:
    """With hardly more than it: what the kernel reads around a page that is touched drives others out of memory."""
    path, place = saved / "samples.safetensors", 10_000_000
    expected = path.read_bytes()[place : place + 10_000]
    drop_from_page_cache(saved)
    with Block.open(path) as block:
        assert count_resident(block)[0] == 0
        assert block.read(place, 10_000) == expected
        assert count_resident(block)[0] <= 16_384


@pytest.mark.parametrize("num_decoded", [0, 2])
def test_an_encoded_sample_is_copied_out_of_the_file_or_its_end_is_an_error(tmp_path: Path, num_decoded: int) -> None:
    samples = [bytes([number]) * 200 for number in range(20)]
    make_encoded_store(SPEC, samples, num_decoded=num_decoded, directory=tmp_path).close()
    with Block.open(tmp_path / "samples.safetensors") as file, Block.open(tmp_path / "rows.arrow") as rows:
        store = Store(SPEC, samples=file, rows=rows, directory=tmp_path)
        assert [store.read_encoded(slot) for slot in range(num_decoded, 20)] == samples[num_decoded:]
        os.truncate(tmp_path / "samples.safetensors", file.nbytes - 1)
        assert store.read_encoded(18) == samples[18]
        with pytest.raises(StoreError, match="was cut short while it is in use"):
            store.read_encoded(19)


def test_no_more_is_brought_in_than_is_asked_for(saved: Path) -> None:
    drop_from_page_cache(saved)
    with Block.open(saved / "samples.safetensors") as block:
        told: list[int] = []
        bring_in(block, most=1_000_000, on_progress=told.append)
        assert sum(told) == 1_000_000
        resident, total = count_resident(block)
        assert 1_000_000 <= resident < total
        assert total >= NUM_BYTES


def test_kernels_that_cannot_populate_read_the_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("in_memory_datasets.store.residency._POPULATE_READ", 9999)  # EINVAL, as before Linux 5.14
    drop_from_page_cache(saved)
    with Block.open(saved / "samples.safetensors") as block:
        bring_in(block, most=block.nbytes)
        resident, total = count_resident(block)
        assert resident == total


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_locked_memory_is_locked_until_the_dataset_is_closed(kind: str) -> None:
    dataset: Any
    before = locked_bytes()
    if kind == "images":
        rows = [{"image_url": image, "caption": ""} for image in make_images(50, SPEC)]
        dataset = InMemoryImageTextDataset(rows, image_size=(64, 64), lock_memory=True, progress=False)
    else:
        clip = {"array": np.ones(8_000, np.float32), "sampling_rate": 8_000}
        dataset = InMemoryAudioTextDataset(
            [{"audio": clip, "caption": ""}] * 20, target_sr=8_000, lock_memory=True, progress=False
        )
    with dataset:
        assert locked_bytes() - before >= dataset.nbytes
        assert pickle.loads(pickle.dumps(dataset)).nbytes == dataset.nbytes  # which is another process's affair
        assert locked_bytes() - before < 2 * dataset.nbytes
    assert locked_bytes() == before


def test_the_lock_outlasts_a_retry(tmp_path: Path) -> None:
    before = locked_bytes()
    images = make_images(50, SPEC)
    rows: list[dict[str, Any]] = [{"image_url": image, "caption": ""} for image in images]
    rows[7]["image_url"] = str(tmp_path / "lost.png")
    with InMemoryImageTextDataset(
        rows, image_size=(64, 64), lock_memory=True, cache_dir=tmp_path / "cache", progress=False
    ) as dataset:
        assert dataset.failed_indices == [7]
        Image.fromarray(images[7]).save(tmp_path / "lost.png")
        assert dataset.retry_failed().num_failed == 0
        assert dataset.nbytes <= locked_bytes() - before < 2 * dataset.nbytes
    assert locked_bytes() == before


def test_a_saved_dataset_is_locked_whole(saved: Path) -> None:
    drop_from_page_cache(saved)
    before = locked_bytes()
    with InMemoryImageTextDataset.load(saved, lock_memory=True) as dataset:
        assert dataset.resident_fraction == 1.0
        assert locked_bytes() - before >= dataset.nbytes


UNPRIVILEGED = """
import os, resource, sys
import numpy as np
from in_memory_datasets import InMemoryImageTextDataset, MemoryLimitError
InMemoryImageTextDataset([{"image_url": np.zeros((9, 9, 3), np.uint8)}], txt_col=lambda row: "", progress=False).close()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1_000_000, 1_000_000))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
asked = 0
class Rows(list):
    def __getitem__(self, i):
        global asked
        asked += 1
        return {"image_url": np.zeros((64, 64, 3), np.uint8), "caption": ""}
rows = Rows([None] * 2000)
try:
    InMemoryImageTextDataset(rows, image_size=(64, 64), lock_memory=True, progress=False)
except MemoryLimitError as error:
    print(error, error.bytes_needed > 20_000_000, error.bytes_available, asked < 400)
try:
    InMemoryImageTextDataset(iter([rows[0]] * 200), image_size=(64, 64), lock_memory=True, progress=False)
except MemoryLimitError as error:
    print(error, "in-memory-datasets-samples" in open("/proc/self/maps").read())
with InMemoryImageTextDataset(rows, max_samples=20, image_size=(64, 64), lock_memory=True, progress=False) as few:
    print(len(few))
"""


def test_who_may_not_lock_as_much_is_told_so_before_anything_is_loaded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED], cwd=tmp_path.anchor, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    early, late, few = done.stdout.splitlines()
    assert re.match(
        r"lock_memory=True needs 2\d\.\d+ MB, and this process may lock 1 MB: raise the limit \(`ulimit", early
    )
    assert early.endswith("True 1000000 True")
    assert re.match(r"this process may not lock the 2\.\d+ MB of the dataset \(its limit is 1 MB in all\)", late)
    assert late.endswith(" False")
    assert few == "20"


def cut(saved: Path, name: str, num_bytes: int) -> None:
    os.truncate(saved / name, num_bytes)


@pytest.mark.parametrize("name", ["samples.safetensors", "rows.arrow"])
@pytest.mark.parametrize(
    "read",
    [
        lambda dataset: dataset[0],
        lambda dataset: dataset.__getitems__([1999, 0]),
        lambda dataset: dataset.verify(),
        lambda dataset: dataset.save(dataset._store.directory.parent / "copy"),
        lambda dataset: dataset.report,
        lambda dataset: dataset.failed_indices,
        lambda dataset: pickle.dumps(dataset),
        lambda dataset: dataset.warm(),
        lambda dataset: dataset.to("cpu"),
        lambda dataset: dataset.retry_failed(reasons={"checksum"}),
    ],
    ids=["sample", "batch", "verify", "save", "report", "failed", "pickle", "warm", "to", "retry"],
)
def test_a_file_that_is_cut_short_while_it_is_in_use_is_an_error(
    saved: Path, name: str, read: Callable[[Any], Any]
) -> None:
    with InMemoryImageTextDataset.load(saved) as dataset:
        cut(saved, name, 5_000)
        with pytest.raises(StoreError, match=rf"{name} (was cut short.*got 5,000|has 5,000|differs from its checksum)"):
            read(dataset)
