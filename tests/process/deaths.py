"""Scripts that die at a chosen moment; see `scripts`."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from tests.process.scripts import main

FEW = 2  # requests at once, and threads, so that little is under way


class Undertaker:
    """End this process by SIGKILL at a chosen call that changes the disk, of a write when half of it is written.

    Args:
        at: At which of all calls; 0 for none.
        after_declared: At which of those after the store has a manifest; 0 for none.
    """

    _CALLS = ("pwrite", "write", "ftruncate", "fsync", "replace", "unlink")

    def __init__(self, at: int, after_declared: int) -> None:
        self._at, self._after_declared = at, after_declared
        self.num_calls, self.num_to_declare = 0, 0
        self._lock = threading.Lock()
        for name in self._CALLS:
            setattr(os, name, functools.partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, call: Any, *args: Any, **options: Any) -> Any:
        if isinstance(args[0], int) and os.readlink(f"/proc/self/fd/{args[0]}").startswith("/memfd:"):
            return call(*args, **options)  # which a decoder reads from
        with self._lock:
            self.num_calls += 1
            since = self.num_calls - self.num_to_declare
            is_last = self.num_calls == self._at or (self.num_to_declare > 0 and since == self._after_declared)
            if is_last and name in ("pwrite", "write"):
                half = bytes(args[1])[: max(1, memoryview(args[1]).nbytes // 2)]
                call(args[0], half, *args[2:])
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **options)
        if name == "replace" and str(args[1]).endswith("/manifest.json"):
            self.num_to_declare = self.num_calls
        return result


def load_and_die(
    urls: list[str], cache_dir: str, options: dict[str, Any], die_at: int = 0, die_after_declared: int = 0
) -> dict[str, Any]:
    """Load pictures or clips, unless death comes before, and say how many calls changed the disk."""
    undertaker = Undertaker(die_at, die_after_declared)
    is_image = urls[0].endswith(".png")
    kind: Any = InMemoryImageTextDataset if is_image else InMemoryAudioTextDataset
    rows = [{"image_url" if is_image else "audio": url, "caption": url.rsplit("/", 1)[-1]} for url in urls]
    fetch = FetchOptions(allow_private_addresses=True, retries=0, concurrency=FEW)
    with kind(rows, cache_dir=cache_dir, fetch=fetch, num_threads=FEW, progress=False, **options) as dataset:
        report = dataset.report
    return {
        "num_ok": report.num_ok,
        "num_decoded": report.num_decoded,
        "num_calls": undertaker.num_calls,
        "num_to_declare": undertaker.num_to_declare,
    }


def nursery() -> None:
    """For each line of arguments fork a child that calls `load_and_die`; it says its number, and this how it ended."""
    for module in ("aiohttp", "pandas", "PIL.PngImagePlugin", "simplejpeg", "soundfile", "soxr"):
        importlib.import_module(module)  # once, and not in every child
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print(json.dumps({"pid": os.getpid()}), flush=True)
            print(json.dumps(load_and_die(**json.loads(line))), flush=True)
            sys.exit()
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main(globals())
