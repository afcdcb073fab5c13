"""A disk that is full, small, another's or of a strange kind: an error that says so, and nothing that looks whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.process.conftest import Script, result_of
from tests.process.disks import KINDS

SMALL_DISK = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, list[str]]:
    """Give a mount point, and the command that starts a process for which a disk of two megabytes is mounted there."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["env", "LC_ALL=C", "unshare", "-m" if os.geteuid() == 0 else "-rm"]
    attempt = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if attempt.returncode and "not permitted" in attempt.stderr:
        pytest.skip(f"no mount namespace is to be had here: {attempt.stderr.strip()}")
    assert attempt.returncode == 0, attempt.stderr
    return place, [*command, "sh", "-c", SMALL_DISK, str(place)]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_the_size_of_files_leaves_all_as_it_was_and_without_it_all_works(
    kind: str, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "elsewhere").mkdir()
    process = script(
        "fill",
        module="disks",
        place=str(tmp_path / "disk"),
        elsewhere=str(tmp_path / "elsewhere"),
        kind=kind,
        how="limit",
    )
    counts = result_of(process)
    assert min(counts.values()) > 0, counts
