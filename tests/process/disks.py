"""Scripts that work on a disk with ever more room, until it is enough; see `scripts`."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset, StoreError
from tests.process.fuse import mounted
from tests.process.scripts import main

NUM_ROWS = 12
Room = Callable[[int], Any]


def room_by_filler(place: Path) -> Room:
    """Give what leaves so many bytes of a file system free, for `with`."""

    @contextmanager
    def room(num_bytes: int) -> Iterator[None]:
        filler, disk = place / "filler", os.statvfs(place)
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - num_bytes))
        try:
            yield
        finally:
            filler.unlink()

    return room


def room_by_limit(_: Path) -> Room:
    """Give what lets files grow to so many bytes, for `with`."""

    @contextmanager
    def room(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return room


def make_picture(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def make_clip(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-1, 1, 1000 + 50 * seed).astype(np.float32)
    soundfile.write(file, noise, 8000, format="WAV")
    return file.getvalue()


KINDS: dict[str, tuple[Any, Callable[[int], bytes], dict[str, Any]]] = {
    "images decoded": (InMemoryImageTextDataset, make_picture, {"image_size": (32, 24)}),
    "images encoded": (InMemoryImageTextDataset, make_picture, {"image_size": (32, 24), "storage": "encoded"}),
    "clips decoded": (InMemoryAudioTextDataset, make_clip, {"target_sr": 8000}),
    "clips mixed": (
        InMemoryAudioTextDataset,
        make_clip,
        {"target_sr": 8000, "storage": "auto", "memory_limit": 60_000},
    ),
}


class Tries:
    """Do something with ever more room until it works, and look after each failure.

    Args:
        sizes: How much room, in bytes.
        words: What each error is to say, besides where it was.
    """

    def __init__(self, room: Room, sizes: range, words: str) -> None:
        self._room, self._sizes, self._words = room, sizes, words

    def until_it_works(
        self, act: Callable[[], object], place: Path, after_failure: Callable[[], object], kind: type[Exception]
    ) -> int:
        """Count how often there was too little room."""
        for number, num_bytes in enumerate(self._sizes):
            with self._room(num_bytes):
                try:
                    act()
                    return number
                except kind as error:
                    said = str(error)
            assert str(place) in said, said
            assert self._words in said, said
            assert kind is OSError or "make room there" in said, said
            after_failure()
        raise AssertionError("there was never room enough")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def fill(place: str, elsewhere: str, kind: str, how: str) -> dict[str, int]:
    """Load, load on, save, mend and report on a disk that is full at first, and count how often each failed."""
    here, there = Path(place), Path(elsewhere)
    cls, make, options = KINDS[kind]
    options = {**options, "progress": False, "num_threads": 2}
    column = "image_url" if cls is InMemoryImageTextDataset else "audio"
    rows = [{column: make(i), "caption": f"row {i}"} for i in range(NUM_ROWS)]
    if how == "limit":
        room, step, words = room_by_limit(here), 3001, "File too large"
    else:
        room, step, words = room_by_filler(here), 4096, "No space left on device"
    # A limit holds for the memory of clips' decoders too, in which they must find room.
    first = 6001 if how == "limit" and cls is InMemoryAudioTextDataset else 0
    tries = Tries(room, range(first, 10**6, step), words)

    def load(cache_dir: Path) -> None:
        with cls(rows, cache_dir=cache_dir, **options) as dataset:
            assert dataset.report.num_ok == NUM_ROWS

    load(there)
    (whole,) = (path for path in there.iterdir() if path.is_dir())
    expected = contents(whole)
    entry = here / "cache" / whole.name
    counts = {}

    def nothing_looks_whole() -> None:
        assert not (entry / "manifest.json").exists()

    def nothing_is_left() -> None:
        nothing_looks_whole()
        shutil.rmtree(here / "cache", ignore_errors=True)

    for name, after_failure in (("begun anew", nothing_is_left), ("gone on with", nothing_looks_whole)):
        counts[name] = tries.until_it_works(lambda: load(here / "cache"), here / "cache", after_failure, StoreError)
        assert contents(entry) == expected
        shutil.rmtree(here / "cache")

    # Of the dataset that is replaced, and of the one that is mended, the files are there as they were.
    lost = there / "lost"
    with cls([rows[0], {column: str(lost), "caption": "it was lost"}, rows[2]], **options) as broken:
        for name in ("saved", "mended"):
            broken.save(here / name)
        report = broken.report
    before = contents(here / "saved")

    def is_as_before(name: str) -> None:
        assert contents(here / name) == before
        with cls.load(here / name, verify=True) as dataset:
            assert dataset.failed_indices == [1]

    with cls(rows, **options) as dataset:
        counts["saved"] = tries.until_it_works(
            lambda: dataset.save(here / "saved"), here / "saved", lambda: is_as_before("saved"), StoreError
        )
        assert contents(here / "saved")["rows.arrow"] == expected["rows.arrow"]

    lost.write_bytes(make(1))
    with cls.load(here / "mended", progress=False) as mended:

        def is_still_served() -> None:
            with cls.load(here / "mended", verify=True) as dataset:
                assert dataset.failed_indices == [1]
            assert mended.failed_indices == [1]
            assert mended.verify() == []
            assert [sample["valid"] for sample in mended] == [True, False, True]
            assert len(contents(here / "mended")) == 3

        counts["mended"] = tries.until_it_works(
            lambda: mended.retry_failed(), here / "mended", is_still_served, StoreError
        )
        assert mended.failed_indices == []
    with cls.load(here / "mended", verify=True) as dataset:
        assert dataset.failed_indices == []

    (here / "report.csv").write_text("the report of before")

    def report_is_as_before() -> None:
        assert (here / "report.csv").read_text() == "the report of before"
        assert [path.name for path in here.glob("report*")] == ["report.csv"]

    counts["reported"] = Tries(room, range(0, 10**6, step), words).until_it_works(
        lambda: report.save(here / "report.csv"), here / "report.csv", report_is_as_before, OSError
    )
    assert "it was lost" not in (here / "report.csv").read_text() != "the report of before"
    return counts


def read_only(place: str, how: str) -> dict[str, str]:
    """Do all that there is to do with what others have written, and give the errors there are."""
    here = Path(place)
    here.chmod(0o755)
    options: dict[str, Any] = {"image_size": (32, 24), "progress": False, "num_threads": 1}
    rows = [{"image_url": make_picture(i), "caption": f"row {i}"} for i in range(3)]
    rows[1]["image_url"] = "/not/there.png"
    with InMemoryImageTextDataset(rows, cache_dir=here / "cache", **options) as dataset:
        dataset.save(here / "saved")
    (entry,) = (path for path in (here / "cache").iterdir() if path.is_dir())
    before = contents(here / "saved"), contents(entry)
    if how == "mount":
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    elif os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    else:
        for path in (here, *here.glob("**/*")):
            path.chmod(path.stat().st_mode & ~0o222)
    said = {}

    def refused(name: str, act: Callable[[], object], kind: type[Exception] = StoreError) -> None:
        try:
            act()
        except kind as error:
            said[name] = str(error)

    with InMemoryImageTextDataset(rows, cache_dir=here / "cache", **options) as attached:
        assert str(attached.report).startswith("2 of 3 samples attached")
        refused("save over", lambda: attached.save(here / "saved"))
        refused("save anew", lambda: attached.save(here / "other"))
        refused("report", lambda: attached.report.save(here / "report.csv"), OSError)
    other = {**options, "image_size": (9, 9)}
    refused("load", lambda: InMemoryImageTextDataset(rows, cache_dir=here / "cache", **other))
    with InMemoryImageTextDataset.load(here / "saved", verify=True, progress=False) as saved:
        refused("retry", saved.retry_failed)
        assert saved.failed_indices == [1]
        assert [sample["valid"] for sample in saved] == [True, False, True]
    assert (contents(here / "saved"), contents(entry)) == before
    if how == "user" and os.geteuid() not in (0, 65534):
        for path in (here, *here.glob("**/*")):
            path.chmod(path.stat().st_mode | 0o200)
    return said


def strange(place: str, elsewhere: str, can_map: bool, lock_error: int) -> dict[str, Any]:
    """Load, save and open on a disk that lacks something, and give the errors there are and what then lies there."""
    options: dict[str, Any] = {"image_size": (32, 24), "progress": False, "num_threads": 1}
    rows = [{"image_url": make_picture(i), "caption": f"row {i}"} for i in range(3)]
    here, said = Path(place), {}
    with mounted(place, can_map=can_map, lock_error=lock_error):
        for name in ("load", "load again"):
            try:
                InMemoryImageTextDataset(rows, cache_dir=here / "cache", **options).close()
            except StoreError as error:
                said[name] = str(error)
        manifests = len(list((here / "cache").glob("*/manifest.json")))
        with InMemoryImageTextDataset(rows, **options) as dataset:
            dataset.save(here / "saved")
        try:
            with InMemoryImageTextDataset.load(here / "saved", verify=True, progress=False) as saved:
                assert saved.report.num_ok == 3
        except StoreError as error:
            said["open"] = str(error)
        shutil.copytree(here / "saved", Path(elsewhere) / "copied")
    with InMemoryImageTextDataset.load(Path(elsewhere) / "copied", verify=True, progress=False) as copied:
        return {"said": said, "manifests": manifests, "num_ok": copied.report.num_ok}


if __name__ == "__main__":
    main(globals())
