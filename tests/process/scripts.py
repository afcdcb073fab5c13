"""Scripts that tests start as processes of their own; each takes its arguments as JSON and prints JSON."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
import torch.multiprocessing
from torch.utils.data import DataLoader

from in_memory_datasets import (
    FetchOptions,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MemoryLimitError,
    StoreError,
    collate_in_memory_images,
)

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


def wait_for_builder(urls: list[str], cache_dir: str) -> dict[str, Any]:
    """Wait for another process's build, and say what the bar shows of it."""
    from tqdm.auto import tqdm

    shown: list[str] = []

    def display(bar: Any, *_: Any, **__: Any) -> None:
        text = str(bar).partition(" [")[0]
        if text.startswith("Another") and not text.endswith(" 0/10") and not shown:
            shown.append(text)
            print(json.dumps(text), flush=True)

    tqdm.display = display
    sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
    rows = [{"image_url": url, "caption": url.rsplit("/", 1)[-1]} for url in urls]
    with InMemoryImageTextDataset(rows, image_size=(32, 32), fetch=LOOPBACK, cache_dir=cache_dir) as dataset:
        return {"failed": dataset.failed_indices, "bytes_fetched": dataset.report.bytes_fetched}


def tell_free_memory(file: str = "", num_bytes: int = 0) -> dict[str, Any]:
    """Say what may still be taken, after taking some memory and reading a file."""
    from in_memory_datasets.memory import free_memory

    before, _ = free_memory()
    held = np.ones(num_bytes, np.uint8)
    if file:
        with open(file, "rb") as data:
            while data.read(2**20):
                pass
    free, limited_by = free_memory()
    return {"before": before, "free": free, "limited_by": limited_by, "held": held.nbytes}


def refuse_what_is_too_large(num_rows: int) -> dict[str, Any]:
    """Say whether a dataset would be loaded here."""
    rows = [{"image_url": f"/not/there/{i}.png", "caption": ""} for i in range(num_rows)]
    plan = InMemoryImageTextDataset.plan(rows)
    try:
        InMemoryImageTextDataset(rows, progress=False)
    except MemoryLimitError as error:
        return {"refused": str(error), "limited_by": plan.limited_by, "fits": plan.fits}
    except LoadError:
        return {"refused": None, "limited_by": plan.limited_by, "fits": plan.fits}
    raise AssertionError("these files are not there")


def load_while_memory_goes(urls: list[str], cache_dir: str) -> dict[str, Any]:
    """Load images, and say how that ends."""
    rows = [{"image_url": url, "caption": ""} for url in urls]
    try:
        with InMemoryImageTextDataset(rows, fetch=LOOPBACK, cache_dir=cache_dir) as dataset:
            return {"error": None, "num_ok": dataset.report.num_ok}
    except MemoryLimitError as error:
        return {"error": str(error)}


def take_memory(group: str, leave: int) -> None:
    """Take the memory of a control group up to some bytes, and hold it until the input ends."""
    limit = int(Path(group, "memory.limit_in_bytes").read_text())
    held = []
    while limit - int(Path(group, "memory.usage_in_bytes").read_text()) > leave:
        held.append(np.ones(4 * 2**20, np.uint8))
    print("taken", flush=True)
    sys.stdin.read()


def load_urls(urls: list[str], cache_dir: str | None = None, distributed: bool = False) -> dict[str, Any]:
    """Load images, as each rank or job of a machine would, and say what memory they lie in."""
    if distributed:
        torch.distributed.init_process_group("gloo")
    rows = [{"image_url": url, "caption": url.rsplit("/", 1)[-1]} for url in urls]
    with InMemoryImageTextDataset(rows, image_size=(32, 32), fetch=LOOPBACK, cache_dir=cache_dir) as dataset:
        inode = os.fstat(dataset._store.samples.fd).st_ino
        total = int(sum(int(sample["image"].sum()) for sample in dataset))
        result = {"inode": inode, "total": total, "failed": dataset.failed_indices}
        if distributed:
            result |= {"tried": dataset.report.num_tried, "said": str(dataset.report)}
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return result


def read_while_loading(urls: list[str], flag: str, kind: str, cache_dir: str | None = None) -> dict[str, Any]:
    """Read the sample that has arrived, say so by writing the flag when all ranks have, and then read the rest."""
    torch.distributed.init_process_group("gloo")
    cls: Any = InMemoryImageTextDataset if kind == "image" else InMemoryAudioTextDataset
    rows = [{kind: url, "caption": url.rsplit("/", 1)[-1]} for url in urls]
    with cls(rows, kind, fetch=LOOPBACK, cache_dir=cache_dir, wait=False, progress=False) as dataset:
        early = dataset[5]
        progress = dataset.progress
        torch.distributed.barrier()
        Path(flag).touch()
        samples = [float(sample[kind].double().sum()) for sample in (dataset[i] for i in range(len(dataset)))]
        report = dataset.wait()
        inode = os.fstat(dataset._store.samples.fd).st_ino
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return {
            "early": [float(early[kind].double().sum()), early["caption"]],
            "progress": progress,
            "samples": samples,
            "ok": report.num_ok,
            "inode": inode,
        }


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


class LazyRows(Sequence[dict[str, Any]]):
    """Rows as of `array_rows`, each made when it is asked for, so that nobody holds them."""

    def __init__(self, num_rows: int, size: int) -> None:
        self.num_rows = num_rows
        self.size = size

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {"image_url": np.full((self.size, self.size, 3), index % 256, np.uint8), "caption": f"row {index}"}


def meet(address: tuple[str, int], **said: Any) -> None:
    """Tell the test how far this process has come, and wait until the test lets it go on, or ends."""
    with socket.create_connection(address) as test:
        test.sendall(json.dumps({"pid": os.getpid(), **said}).encode() + b"\n")
        test.recv(1)


def wrong_rows(batch: dict[str, Any], step: int = 1) -> list[int]:
    """List the rows of a batch whose pictures, or every so many lines of them, are not filled with their number."""
    pixels = batch["images"].permute(0, 2, 3, 1)[:, ::step].flatten(1)
    right = (pixels == (batch["indices"] % 256).to(torch.uint8)[:, None]).all(1)
    wrong: list[int] = batch["indices"][~right].tolist()
    return wrong


def serve_every_page(address: tuple[str, int], num_rows: int, size: int, num_batches: int, method: str) -> None:
    """Let each of eight workers serve all batches, and keep them; with few rows the batches hold those repeatedly."""
    num_workers, batch_size = 8, 8
    multiprocessing.set_forkserver_preload(["tests.process.scripts"])
    batches = [[(i * batch_size + k) % num_rows for k in range(batch_size)] for i in range(num_batches)]
    with InMemoryImageTextDataset(LazyRows(num_rows, size), image_size=(size, size), progress=False) as dataset:
        loader = DataLoader(
            dataset,
            batch_sampler=[batch for batch in batches for _ in range(num_workers)],  # workers take turns
            num_workers=num_workers,
            prefetch_factor=1,
            collate_fn=collate_in_memory_images,
            multiprocessing_context=method,
            persistent_workers=True,
        )
        gc.freeze()  # else chance has one family collect after the fork, which writes to all pages that it shares
        wrong = sorted({row for batch in loader for row in wrong_rows(batch, step=16)})
        workers = [worker.pid for worker in loader._iterator._workers]
        meet(address, inode=os.fstat(dataset._store.samples.fd).st_ino, wrong=wrong, workers=workers)
        loader._iterator = None  # ends the workers


def share_urls(
    address: tuple[str, int],
    urls: list[str],
    size: int,
    num_reads: int | None = None,
    cache_dir: str | None = None,
    num_workers: int = 0,
) -> None:
    """Load images as any process of a machine would, and meet; read them all, or some repeatedly, and meet again."""
    rows = [{"image_url": url, "caption": url} for url in urls]
    with InMemoryImageTextDataset(
        rows, image_size=(size, size), fetch=LOOPBACK, cache_dir=cache_dir, progress=False
    ) as dataset:
        meet(address, inode=os.fstat(dataset._store.samples.fd).st_ino, failed=dataset.failed_indices)
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=[i % len(dataset) for i in range(num_reads or len(dataset))],
            num_workers=num_workers,
            collate_fn=collate_in_memory_images,
            persistent_workers=num_workers > 0,
        )
        seen, wrong = 0, []
        for batch in loader:
            seen += len(batch["indices"])
            wrong += wrong_rows(batch)
        meet(address, seen=seen, wrong=wrong)
        loader._iterator = None


def spawn_ranks(address: tuple[str, int], urls: list[str], size: int, world_size: int, rendezvous: str) -> None:
    """Start ranks as a script does that needs no launcher."""
    torch.multiprocessing.spawn(_spawned_rank, (address, urls, size, world_size, rendezvous), nprocs=world_size)


def _spawned_rank(
    rank: int, address: tuple[str, int], urls: list[str], size: int, world_size: int, rendezvous: str
) -> None:
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    share_urls(address, urls, size)
    torch.distributed.destroy_process_group()


def hold_an_epoch(num_rows: int, size: int, batch_size: int, num_workers: int) -> dict[str, Any]:
    """Serve an epoch and hold all its batches; say what room there is in /dev/shm, and what was used of it."""
    room = os.statvfs("/dev/shm")
    with InMemoryImageTextDataset(LazyRows(num_rows, size), image_size=(size, size), progress=False) as dataset:
        loader = DataLoader(
            dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_in_memory_images
        )
        held = list(loader)
        return {
            "room": room.f_blocks * room.f_frsize,
            "nbytes": dataset.nbytes,
            "held": sum(batch["images"].nbytes for batch in held),
            "seen": [row for batch in held for row in batch["indices"].tolist()],
            "wrong": [row for batch in held for row in wrong_rows(batch)],
        }


def _descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return links


def read_on_after_a_cut(directory: str, num_workers: int, start_method: str | None) -> dict[str, Any]:
    """Take a batch, let the parent cut a file, and take the next one."""
    with InMemoryImageTextDataset.load(directory) as dataset:
        loader = DataLoader(
            dataset,
            batch_size=4,
            num_workers=num_workers,
            prefetch_factor=1 if num_workers else None,
            multiprocessing_context=start_method,
            collate_fn=collate_in_memory_images,
        )
        batches = iter(loader)
        taken = len(next(batches)["captions"])
        while num_workers and batches._worker_result_queue.empty():  # type: ignore[attr-defined]
            time.sleep(0.01)  # until the worker has the one batch ahead that it may have, and reads no more
        print("reading", flush=True)
        sys.stdin.readline()
        try:
            for batch in batches:
                taken += len(batch["captions"])
        except StoreError as error:
            return {"taken": taken, "error": str(error)}
    return {"taken": taken, "error": None}


def read_at_random(directory: str, slots: list[int]) -> dict[str, Any]:
    """Serve samples one after another, and say how much was read from the disk for them, and to open their store."""
    at_first = _bytes_read()
    with InMemoryImageTextDataset.load(directory) as dataset:
        to_open = _bytes_read() - at_first
        on_disk = dataset.report.num_on_disk
        before = _bytes_read()
        pixels = [int(dataset[slot]["image"][0, 0, 0]) for slot in slots]
        return {"on_disk": on_disk, "pixels": pixels, "bytes_read": _bytes_read() - before, "bytes_to_open": to_open}


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().partition("read_bytes: ")[2].split()[0])


def warm_and_lock(directory: str) -> dict[str, Any]:
    """Bring in what there is room for, and try to lock all of it."""
    with InMemoryImageTextDataset.load(directory) as dataset:
        before = dataset.resident_fraction
        warm = dataset.warm()
        try:
            InMemoryImageTextDataset.load(directory, lock_memory=True).close()
        except MemoryLimitError as error:
            return {"before": before, "warm": warm, "error": str(error)}
        return {"before": before, "warm": warm, "error": None}


def main(functions: dict[str, Any]) -> None:
    """Call the function that the command line names, and say what it gives."""
    result = functions[sys.argv[1]](**json.loads(sys.argv[2]))
    place = os.environ.get("RESULT_DIR")
    if place:
        (Path(place) / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main(globals())
