"""Limits of real control groups, one within another, and memory that another process takes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import InMemoryImageTextDataset
from tests.lacking import lacks
from tests.process.conftest import ROOT, MediaServer, Script, result_of, wait_for

MB = 10**6
V1 = Path("/sys/fs/cgroup/memory")

pytestmark = pytest.mark.campaign


class Groups:
    """Two memory groups, `inner` within `outer`."""

    def __init__(self, outer: Path) -> None:
        self.outer, self.inner = outer, outer / "inner"

    def limit(self, outer: int, inner: int) -> None:
        for group, limit in ((self.outer, outer), (self.inner, inner)):
            (group / "memory.limit_in_bytes").write_text(str(limit))

    def launcher(self) -> tuple[str, ...]:
        """Give what runs `python -m ...` inside the inner group."""
        enter = f"import os, runpy, sys; open({str(self.inner / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        run = "sys.argv[:] = sys.argv[2:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
        return "-c", f"{enter}; {run}"


@pytest.fixture
def groups() -> Iterator[Groups]:
    if not (V1 / "memory.limit_in_bytes").exists() or not os.access(V1, os.W_OK):
        lacks(f"this process may make no control groups in {V1}, or they are not of version 1")
    outer = V1 / f"in-memory-datasets-test-{os.getpid()}"
    (outer / "inner").mkdir(parents=True)
    try:
        yield Groups(outer)
    finally:
        for group in (outer / "inner", outer):
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            wait_for(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()


@pytest.mark.parametrize(("outer", "inner"), [(700 * MB, 900 * MB), (900 * MB, 700 * MB), (700 * MB, 700 * MB)])
def test_the_smallest_of_nested_limits_counts_less_what_is_used(
    groups: Groups, script: Script, outer: int, inner: int
) -> None:
    groups.limit(outer, inner)
    result = result_of(script("tell_free_memory", launcher=groups.launcher(), num_bytes=150 * MB))
    assert result["limited_by"] == "cgroup"
    assert result["before"] < 700 * MB
    assert result["before"] - result["free"] == pytest.approx(150 * MB, abs=20 * MB)
    outside = result_of(script("tell_free_memory"))
    assert outside["free"] > result["free"]


def test_page_cache_that_can_be_given_back_is_not_counted(groups: Groups, script: Script, tmp_path: Path) -> None:
    groups.limit(900 * MB, 900 * MB)
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(bytes(300 * MB))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that who reads it is charged for it
    result = result_of(script("tell_free_memory", launcher=groups.launcher(), file=str(path)))
    assert result["before"] - result["free"] < 50 * MB
    assert int((groups.inner / "memory.usage_in_bytes").read_text()) > 250 * MB


def test_what_does_not_fit_into_the_group_is_refused_there_and_nowhere_else(groups: Groups, script: Script) -> None:
    groups.limit(900 * MB, 1200 * MB)
    inside = result_of(script("refuse_what_is_too_large", launcher=groups.launcher(), num_rows=10_000))
    assert (inside["limited_by"], inside["fits"]) == ("cgroup", False)
    assert "10,000 samples need 1.51 GB, what the container has free is" in inside["refused"]
    outside = result_of(script("refuse_what_is_too_large", num_rows=10_000))
    assert (outside["refused"], outside["fits"]) == (None, True)


def test_a_load_whose_memory_another_process_takes_ends_in_order_and_goes_on_later(
    groups: Groups, script: Script, server: MediaServer, tmp_path: Path
) -> None:
    groups.limit(1200 * MB, 1200 * MB)
    server.stalled_paths = {"/3.png"}
    urls = [f"{server.url}/{i}.png" for i in range(20)]
    arguments: dict[str, Any] = {"urls": urls, "cache_dir": str(tmp_path), "launcher": groups.launcher()}
    loading = script("load_while_memory_goes", **arguments)
    (journal,) = wait_for(lambda: list(tmp_path.glob("*/journal")))
    wait_for(lambda: journal.stat().st_size == 19 * 40)
    taker = [sys.executable, *groups.launcher(), "-m", "tests.process.scripts", "take_memory"]
    arguments_of_taker = f'{{"group": "{groups.inner}", "leave": {60 * MB}}}'
    with subprocess.Popen(
        [*taker, arguments_of_taker], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as other:
        assert other.stdout is not None
        result = result_of(loading)  # which raises where the process was killed
        other.kill()
    assert "the container has only" in result["error"]
    assert "19 samples are in place in" in result["error"]
    server.stalled_paths = set()
    server.release.set()
    server.requests.clear()
    assert result_of(script("load_while_memory_goes", **arguments)) == {"error": None, "num_ok": 20}
    assert server.requests == ["/3.png"]


class Pictures(Sequence[dict[str, Any]]):
    """Rows of pictures of 150 kB, made when they are read."""

    def __init__(self, num_pictures: int, *, is_noise: bool) -> None:
        self.num_pictures, self.is_noise = num_pictures, is_noise

    def __len__(self) -> int:
        return self.num_pictures

    def __getitem__(self, i: Any) -> dict[str, Any]:
        if not 0 <= i < self.num_pictures:
            raise IndexError(i)
        if self.is_noise:
            picture = np.random.default_rng(i).integers(0, 256, (224, 224, 3), np.uint8)
        else:
            picture = np.full((224, 224, 3), i % 251, np.uint8)
        return {"image_url": picture, "caption": ""}


def save_pictures(place: Path, num_pictures: int, storage: Any) -> list[int]:
    """Save pictures of 150 kB each in either form, leave nothing of them in memory, and give a pixel of each."""
    rows = Pictures(num_pictures, is_noise=storage == "encoded")  # what is not noise takes less
    with InMemoryImageTextDataset(rows, storage=storage, progress=False) as dataset:
        dataset.save(place, progress=False)
    for path in place.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return [int(row["image_url"][0, 0, 0]) for row in rows]


@pytest.mark.parametrize(("storage", "num_pictures"), [("decoded", 3000), ("encoded", 600)])
def test_of_what_lies_on_the_disk_only_what_is_asked_for_is_read(
    groups: Groups, script: Script, tmp_path: Path, storage: str, num_pictures: int
) -> None:
    pixels = save_pictures(tmp_path / "saved", num_pictures, storage)
    groups.limit(700 * MB, 700 * MB)
    slots = np.random.default_rng(1).permutation(num_pictures)[:100].tolist()
    result = result_of(
        script("read_at_random", launcher=groups.launcher(), directory=str(tmp_path / "saved"), slots=slots)
    )
    assert result["pixels"] == [pixels[slot] for slot in slots]
    assert (result["on_disk"] > 1000) == (storage == "decoded")
    assert result["bytes_read"] < 2 * 100 * 224 * 224 * 3
    # The manifest, the rows and a sample, and not the megabytes that the kernel would read around each.
    assert result["bytes_to_open"] < 2_000_000


def test_only_what_there_is_room_for_is_brought_in_and_nothing_beyond_it_is_locked(
    groups: Groups, script: Script, tmp_path: Path
) -> None:
    save_pictures(tmp_path / "saved", 3000, "decoded")
    groups.limit(800 * MB, 800 * MB)  # of which the process takes some 200 MB, and 300 MB are left aside
    result = result_of(script("warm_and_lock", launcher=groups.launcher(), directory=str(tmp_path / "saved")))
    assert result["before"] < 0.1
    assert 0.2 < result["warm"] < 0.95
    assert "lock_memory=True keeps all 452 MB in memory, and there are" in result["error"]
    groups.limit(2000 * MB, 2000 * MB)
    result = result_of(script("warm_and_lock", launcher=groups.launcher(), directory=str(tmp_path / "saved")))
    assert (result["warm"], result["error"]) == (1.0, None)
