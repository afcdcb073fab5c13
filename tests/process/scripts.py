"""Scripts that tests start as processes of their own; each takes its arguments as JSON and prints JSON."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset

LOOPBACK = FetchOptions(allow_private_addresses=True, retries=0)


def array_rows(num_rows: int, size: int = 8) -> list[dict[str, Any]]:
    """Make rows whose images need no fetching and say which row they are."""
    return [{"image_url": np.full((size, size, 3), i % 256, np.uint8), "caption": f"row {i}"} for i in range(num_rows)]


def open_pickle(path: str) -> dict[str, Any]:
    """Read a pickled dataset after the process that wrote it has ended."""
    with open(path, "rb") as file:
        dataset = pickle.load(file)
    with dataset:
        return {"length": len(dataset), "caption": dataset[3]["caption"], "pixel": int(dataset[3]["image"][0, 0, 0])}


def write_pickle(path: str, num_rows: int) -> None:
    with InMemoryImageTextDataset(array_rows(num_rows), image_size=(8, 8)) as dataset, open(path, "wb") as file:
        pickle.dump(dataset, file)


def load_urls(urls: list[str], cache_dir: str | None = None, distributed: bool = False) -> dict[str, Any]:
    """Load images, as each rank or job of a machine would, and say what memory they lie in."""
    if distributed:
        torch.distributed.init_process_group("gloo")
    rows = [{"image_url": url, "caption": url.rsplit("/", 1)[-1]} for url in urls]
    with InMemoryImageTextDataset(rows, image_size=(32, 32), fetch=LOOPBACK, cache_dir=cache_dir) as dataset:
        inode = os.fstat(dataset._store.samples.fd).st_ino
        total = int(sum(int(sample["image"].sum()) for sample in dataset))
        if distributed:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return {"inode": inode, "total": total, "failed": dataset.failed_indices}


def load_audio_and_retry(urls: list[str], flag: str) -> dict[str, Any]:
    """Load clips of which some fail, mend the server by writing the flag, and load those again, as a rank would."""
    torch.distributed.init_process_group("gloo")
    rows = [{"audio": url, "caption": ""} for url in urls]
    with InMemoryAudioTextDataset(rows, target_sr=8000, fetch=LOOPBACK) as dataset:
        before = dataset.failed_indices
        torch.distributed.barrier()
        Path(flag).touch()
        report = dataset.retry_failed()
        torch.distributed.barrier()
        inode = os.fstat(dataset._store.samples.fd).st_ino
        torch.distributed.destroy_process_group()
        return {"before": before, "after": dataset.failed_indices, "ok": report.num_ok, "inode": inode}


def interrupted(url: str, ready: str) -> dict[str, Any]:
    """Load from a server that never answers, and say how the interrupt was taken."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    rows = [{"image_url": f"{url}/{i}.jpg", "caption": ""} for i in range(500)]
    Path(ready).touch()
    started = time.monotonic()
    try:
        InMemoryImageTextDataset(rows, fetch=FetchOptions(allow_private_addresses=True))
    except KeyboardInterrupt:
        sockets = [link for link in _descriptors() if link.startswith("socket:")]
        blocks = [link for link in _descriptors() if "in-memory-datasets" in link]
        return {"seconds": time.monotonic() - started, "sockets": sockets, "blocks": blocks}
    return {"seconds": -1.0}


def _descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return links


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    place = os.environ.get("RESULT_DIR")
    if place:
        (Path(place) / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
    else:
        print(json.dumps(result))
