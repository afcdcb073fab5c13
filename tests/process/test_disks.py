"""A disk that is full, small, another's or of a strange kind: an error that says so, and nothing that looks whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import InMemoryImageTextDataset, StoreError
from tests.lacking import lacks
from tests.process.conftest import Script, result_of
from tests.process.disks import KINDS

SMALL_DISK = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory for a disk, or for one to be mounted there."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def small_disk(unshare: list[str], place: Path) -> tuple[Path, list[str]]:
    """Give a mount point, and the command that starts a process for which a disk of two megabytes is mounted there."""
    return place, [*unshare, "sh", "-c", SMALL_DISK, str(place)]


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_all_as_it_was_and_with_room_all_works(
    kind: str, tmp_path: Path, small_disk: tuple[Path, list[str]], script: Script
) -> None:
    place, wrapper = small_disk
    (tmp_path / "elsewhere").mkdir()
    process = script(
        "fill",
        module="disks",
        wrapper=wrapper,
        place=str(place),
        elsewhere=str(tmp_path / "elsewhere"),
        kind=kind,
        how="filler",
    )
    counts = result_of(process)
    assert min(counts.values()) > 0, counts


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_the_size_of_files_leaves_all_as_it_was_and_without_it_all_works(
    kind: str, tmp_path: Path, place: Path, script: Script
) -> None:
    (tmp_path / "elsewhere").mkdir()
    process = script(
        "fill",
        module="disks",
        place=str(place),
        elsewhere=str(tmp_path / "elsewhere"),
        kind=kind,
        how="limit",
    )
    counts = result_of(process)
    assert min(counts.values()) > 0, counts


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Give a directory that other users can get to, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="in-memory-datasets-test-") as place:
        yield Path(place)


@pytest.mark.parametrize("how", ["user", "mount"])
def test_what_others_wrote_is_read_and_left_alone_and_the_errors_say_where(
    how: str, open_place: Path, request: pytest.FixtureRequest, script: Script
) -> None:
    """As another user, or on a read-only mount: attaching and loading work, and all that writes says what to do."""
    place, wrapper = request.getfixturevalue("small_disk") if how == "mount" else (open_place, [])
    said = result_of(script("read_only", module="disks", wrapper=wrapper, place=str(place), how=how))
    places = {"save over": "saved", "save anew": "other", "load": "cache", "retry": "saved"}
    assert set(said) == {*places, "report"}
    reason = "Permission denied" if how == "user" else "Read-only file system"
    for name, directory in places.items():
        assert f" {place / directory}: {reason}" in said[name]
        assert "; take a directory that you may write" in said[name]
    assert reason in said["report"]
    assert str(place / "report.csv") in said["report"]


@pytest.mark.parametrize("place", ["/proc/self", "/sys/kernel", "/dev/null"])
def test_what_is_no_disk_at_all_is_said_by_name(place: str, tmp_path: Path) -> None:
    rows = [{"image_url": np.zeros((4, 4, 3), np.uint8), "caption": ""}]
    options: dict[str, Any] = {"image_size": (4, 4), "progress": False}
    with pytest.raises(StoreError, match=f"cannot write the samples to {place}/cache: .*; take a directory "):
        InMemoryImageTextDataset(rows, cache_dir=f"{place}/cache", **options)
    with InMemoryImageTextDataset(rows, **options) as dataset:
        with pytest.raises(StoreError, match=f"cannot save the dataset in {place}/saved: .*; take a directory "):
            dataset.save(f"{place}/saved")
        dataset.save(tmp_path / "saved")
    with pytest.raises(StoreError, match=f"{place}/saved holds no complete dataset"):
        InMemoryImageTextDataset.load(f"{place}/saved")


LACKING = {
    "mapping": ({"can_map": False, "lock_error": 0}, "/cache/", "No such device"),
    "locks": ({"can_map": True, "lock_error": errno.ENOLCK}, "/cache", "No locks available"),
    "locks altogether": ({"can_map": True, "lock_error": errno.ENOSYS}, "/cache", ""),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_file_system_that_lacks_something_says_so_and_what_is_saved_there_is_whole(
    lacking: str, tmp_path: Path, place: Path, unshare: list[str], script: Script
) -> None:
    """Nothing is built there that looks whole; files are saved there, and where they cannot be mapped, copied."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacks("there is no /dev/fuse to mount a file system with")
    options, directory, words = LACKING[lacking]
    arguments = {"place": str(place), "elsewhere": str(tmp_path), **options}
    found = result_of(script("strange", module="disks", wrapper=unshare, **arguments))
    assert found["manifests"] == 0
    assert found["num_ok"] == 3
    for name in ("load", "load again"):
        assert f"{place}{directory}" in found["said"][name]
        assert words in found["said"][name]
        assert "on a local disk" in found["said"][name]
    if lacking == "mapping":
        expected = f"{place}/saved cannot be mapped into memory: No such device; copy it to a local disk"
        assert found["said"]["open"] == expected
    else:
        assert "open" not in found["said"]
