"""What huge pages are worth to a block in memory: the same bytes in pages of 4 kB and in pages of 2 MB, alternated.

    sudo python -m benchmarks.bench_pages        # about a minute; Linux

Linux gives shared memory huge pages only where the administrator lets it (/sys/kernel/mm/transparent_hugepage/
shmem_enabled), which this changes for as long as it runs and so needs to be root. Measured are: writing a block of
images sample by sample, as a load does; the first epoch of a process that has just mapped it; and later epochs. An
epoch gathers batches of 256 in random order into one warm buffer, on one thread. Results go to
benchmarks/results/pages/.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.bench_quick import describe_machine

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
SHAPE = (224, 224, 3)
BATCH_SIZE = 256
WAYS = {"small": "never", "huge": "always"}  # what the switch says


@contextmanager
def switched(to: str) -> Iterator[None]:
    """Let the kernel do something else for as long as the block lasts."""
    before = SWITCH.read_text().split("[")[1].split("]")[0]
    SWITCH.write_text(to)
    try:
        yield
    finally:
        SWITCH.write_text(before)


def write_block(num_images: int) -> tuple[int, float]:
    """Write a block of images through its descriptor; give it and the seconds that took."""
    image = np.full(SHAPE, 7, np.uint8)
    fd = os.memfd_create("pages")
    start = time.perf_counter()
    for slot in range(num_images):
        os.pwrite(fd, image, slot * image.nbytes)
    return fd, time.perf_counter() - start


def map_block(fd: int, num_images: int) -> torch.Tensor:
    """Map a block anew, in pages as large as there are."""
    pages = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, np.uint8).reshape(num_images, -1))


def time_epoch(images: torch.Tensor, order: torch.Tensor, buffer: torch.Tensor) -> float:
    """Gather every batch into one buffer; give the seconds."""
    start = time.perf_counter()
    for batch in order:
        torch.index_select(images, 0, batch, out=buffer)
    return time.perf_counter() - start


def huge_bytes() -> int:
    """Count the shared memory that lies in huge pages now."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("ShmemHugePages"))
    return 1024 * int(line.split()[1])


def measure(num_images: int, repeats: int) -> dict[str, Any]:
    """Time all three, in turn, once for each repeat."""
    torch.set_num_threads(1)
    seconds: dict[str, dict[str, list[float]]] = {
        what: {way: [] for way in WAYS} for what in ("write", "first_epoch", "later_epoch")
    }
    buffer = torch.ones((BATCH_SIZE, int(np.prod(SHAPE))), dtype=torch.uint8)
    in_huge_pages = 0
    for repeat in range(repeats + 1):  # one that does not count
        order = torch.randperm(num_images)[: num_images // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        for way in sorted(WAYS, reverse=bool(repeat % 2)):
            with switched(WAYS[way]):
                fd, writing = write_block(num_images)
                try:
                    if way == "huge":
                        in_huge_pages = huge_bytes()
                    images = map_block(fd, num_images)
                    epochs = [time_epoch(images, order, buffer) for _ in range(3)]
                    del images
                finally:
                    os.close(fd)
            if repeat:
                for what, value in (("write", writing), ("first_epoch", epochs[0]), ("later_epoch", epochs[2])):
                    seconds[what][way].append(value)
    figures: dict[str, Any] = {"num_images": num_images, "batch_size": BATCH_SIZE, "huge_bytes": in_huge_pages}
    for what, ways in seconds.items():
        gains = sorted(small / huge for small, huge in zip(ways["small"], ways["huge"], strict=True))
        figures[what] = {
            **{f"{way}_seconds": median(values) for way, values in ways.items()},
            "gain": median(gains),
            "gain_range": [gains[0], gains[-1]],
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "pages")
    options = parser.parse_args()
    if not os.access(SWITCH, os.W_OK):
        parser.error(f"{SWITCH} cannot be written: this needs Linux, and to be root")
    if options.num_images < BATCH_SIZE:
        parser.error(f"--num-images {options.num_images}: expected at least {BATCH_SIZE}")
    record = {"machine": describe_machine(), "figures": measure(options.num_images, options.repeats)}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["figures"], indent=1))


if __name__ == "__main__":
    main()
