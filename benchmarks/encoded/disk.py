"""A part on the disk: an encoded store larger than the memory of a control group, served from within that group.

The file is mapped, and what there is no memory for comes from the disk whenever it is asked for. What that takes at
best is measured in the same process: the bytes of each sample in random order, read by as many threads as decode, when
none of them lies in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.bench_gather import Figures, loader_of, time_epoch
from benchmarks.encoded.access import num_threads
from benchmarks.encoded.samples import SIZE, Corpora
from in_memory_datasets import InMemoryImageTextDataset
from in_memory_datasets.store import Block, count_resident

SHARES = (0.1, 0.25, 0.5)  # of the bytes that have no room in memory
BATCH_SIZE = 32
_ROOT = Path(__file__).parents[2]
_GROUPS = Path("/sys/fs/cgroup/memory")
_MAX_TRIES, _CLOSE = 6, 0.02  # to leave a share on the disk, give or take this


def measure_disk(corpora: Corpora, *, num_samples: int, repeats: int, work: Path) -> Figures:
    """Save an encoded store and serve it with less and less memory.

    Args:
        work: A directory on the disk that is measured.

    Returns:
        The figures, or {"note": why there are none}.
    """
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="disk-") as scratch:
        directory = Path(scratch) / "store"
        with InMemoryImageTextDataset(
            corpora.photos(num_samples), image_size=SIZE, storage="encoded", progress=False
        ) as dataset:
            dataset.save(directory)
        drop_from_memory(directory)
        with Block.open(directory / "samples.safetensors") as block:
            if count_resident(block)[0]:
                return {"note": f"{work} is on no disk: its files lie in memory"}
        try:
            with control_group() as group:
                return _run_inside(group, {"directory": str(directory), "repeats": repeats})
        except OSError as error:
            return {"note": f"memory groups (version 1) cannot be made here: {error.strerror}"}


@contextmanager
def control_group() -> Iterator[Path]:
    """Make a memory group within that of all processes; nothing may be left in it in the end."""
    group = _GROUPS / f"in-memory-datasets-bench-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def _run_inside(group: Path, arguments: dict[str, Any]) -> Figures:
    command = [sys.executable, "-m", "benchmarks.encoded.disk", json.dumps({"group": str(group), **arguments})]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        *lines, last = process.stdout.read().splitlines() or [""]
        print("\n".join(lines), flush=True)
    if process.returncode:
        raise SystemExit(f"what serves from the disk ended with {process.returncode}")
    figures: Figures = json.loads(last)
    return figures


def drop_from_memory(directory: Path) -> None:
    """Let the page cache forget the files of a store, so that who reads them next is charged for them."""
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _measure_inside(group: Path, directory: Path, repeats: int) -> Figures:
    """Enter a group, and serve from a directory with the limits that leave each share of it on the disk."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    read_seconds = median(_time_reads(directory) for _ in range(repeats))
    rows = []
    with InMemoryImageTextDataset.load(directory) as dataset:
        for share in SHARES:
            limit = _find_limit(group, dataset, share)
            turns = [_take_turn(group, dataset, limit, read_seconds) for _ in range(repeats)]
            ratios = sorted(turn["expected_seconds"] / turn["seconds"] for turn in turns)
            rows.append(
                {
                    "share_on_disk": median(turn["share_on_disk"] for turn in turns),
                    "share_read": median(turn["share_read"] for turn in turns),
                    "in_memory_per_s": len(dataset) / median(turn["in_memory_seconds"] for turn in turns),
                    "expected_per_s": len(dataset) / median(turn["expected_seconds"] for turn in turns),
                    "per_s": len(dataset) / median(turn["seconds"] for turn in turns),
                    "ratio": median(ratios),
                    "ratio_range": [ratios[0], ratios[-1]],
                }
            )
            print(rows[-1], flush=True)
        _limit(group, None)
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        return {
            "num_samples": len(dataset),
            "nbytes": dataset.nbytes,
            "batch_size": BATCH_SIZE,
            "reads_per_s": len(dataset) / read_seconds,
            "read_ahead_bytes": _read_ahead_bytes(directory),
            "rows": rows,
        }


def _find_limit(group: Path, dataset: Any, share: float) -> int:
    """Find the limit that leaves a share of a dataset on the disk."""
    _limit(group, None)
    dataset.warm(progress=False)
    time_epoch(loader_of(dataset, BATCH_SIZE))
    limit: int = int((group / "memory.usage_in_bytes").read_text()) - round(share * dataset.nbytes)
    for _ in range(_MAX_TRIES):
        _limit(group, limit)
        time_epoch(loader_of(dataset, BATCH_SIZE))
        found = 1 - dataset.resident_fraction
        if abs(found - share) < _CLOSE:
            break
        limit += round((found - share) * dataset.nbytes)
    return limit


def _take_turn(group: Path, dataset: Any, limit: int, read_seconds: float) -> Figures:
    """Take an epoch with all in memory, and with the limit one that settles what lies there and one that counts."""
    loader = loader_of(dataset, BATCH_SIZE)
    _limit(group, None)
    dataset.warm(progress=False)
    in_memory = time_epoch(loader)
    _limit(group, limit)
    time_epoch(loader)
    before, on_disk = _bytes_read(), 1 - dataset.resident_fraction
    seconds = time_epoch(loader)
    return {
        "share_on_disk": on_disk,
        "share_read": (_bytes_read() - before) / dataset.nbytes,
        "in_memory_seconds": in_memory,
        "expected_seconds": in_memory + on_disk * read_seconds,
        "seconds": seconds,
    }


def _limit(group: Path, num_bytes: int | None) -> None:
    (group / "memory.limit_in_bytes").write_text("-1" if num_bytes is None else str(num_bytes))


def _read_ahead_bytes(directory: Path) -> int | None:
    """Give how much the kernel may read around a page that is missing; None where it does not say."""
    device = os.stat(directory).st_dev
    says = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return 1024 * int(says.read_text()) if says.exists() else None


def _bytes_read() -> int:
    """Count what this process has fetched from the disk, whole pages and what the kernel reads ahead."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _time_reads(directory: Path) -> float:
    """Read the bytes of every sample from the disk, in random order, in nothing but that; give the seconds."""
    drop_from_memory(directory)
    with InMemoryImageTextDataset.load(directory) as dataset:
        store = dataset._store
        assert store.encoded_offsets is not None
        assert store.encoded is not None
        first = store.samples.nbytes - store.encoded.nbytes
        places = (first + store.encoded_offsets).tolist()
        file = os.open(directory / "samples.safetensors", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

            def read(i: int) -> int:
                return len(os.pread(file, places[i + 1] - places[i], places[i]))

            order = torch.randperm(len(places) - 1).tolist()
            with ThreadPoolExecutor(num_threads()) as pool:
                start = time.perf_counter()
                deque(pool.map(read, order), maxlen=0)
                return time.perf_counter() - start
        finally:
            os.close(file)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(_measure_inside(Path(given["group"]), Path(given["directory"]), given["repeats"])))
