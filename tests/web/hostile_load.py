"""Load what a hostile server serves in a process of its own, and tell what became of it and of the process.

Reads from its input, as JSON, what to load; writes to its output, as JSON, what it saw.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import resource
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.errors import LoadError


class Resolver:
    """Stand in for the system's: names under "test" lead to 127.0.0.1, some of them in their own way."""

    def __init__(self) -> None:
        self._system = socket.getaddrinfo
        self._lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()

    def __call__(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".test") or len(str(host)) > 60:
            return self._system(host, port, *arguments, **options)
        with self._lock:
            self.asked[host] += 1
        kind = host.split(".")[-2]
        if kind == "hanging":
            self.over.wait(120)
        elif kind == "slow":
            self.over.wait(0.5)
        if kind == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if kind in ("broken", "hanging") or (kind == "flaky" and self.asked[host] <= 2):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._system("127.0.0.1", port, *arguments, **options)


def look_at_process() -> dict[str, Any]:
    """Tell what the process has open, runs and holds."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/dev/fd")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "tasks": [repr(task) for task in gc.get_objects() if type(task) is asyncio.Task and not task.done()],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def load(cls: Any, urls: list[str], *, on_error: str = "placeholder", **options: Any) -> Any:
    """Load a column of URLs."""
    rows = [{"url": url, "caption": f"caption {index}"} for index, url in enumerate(urls)]
    column = {"img_col": "url"} if cls is InMemoryImageTextDataset else {"audio_col": "url"}
    return cls(rows, **column, on_error=on_error, progress=False, fetch=FetchOptions(**options))


def tell(dataset: Any, place: Path) -> dict[str, Any]:
    """Save a dataset, and tell how each row ended."""
    dataset.save(place, progress=False)
    report = dataset.report
    failures = {
        failure.index: [failure.stage, failure.reason, failure.attempts, str(failure), repr(failure)]
        for failure in report.failures
    }
    good = dataset[0]
    key = "image" if "image" in good else "audio"
    same = [bool(dataset[i]["valid"]) and bool((dataset[i][key] == good[key]).all()) for i in range(len(dataset))]
    return {"failures": failures, "same_as_first": same, "report": f"{report}\n{report!r}"}


def main() -> None:
    """Load all, once for the pictures and once for the clips."""
    plan = json.load(sys.stdin)
    logs = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=logs)
    resolver = socket.getaddrinfo = Resolver()  # type: ignore[assignment]
    kinds = {"image": InMemoryImageTextDataset, "audio": InMemoryAudioTextDataset}
    for name, cls in kinds.items():  # what is made once for a process is made before it is looked at
        load(cls, plan["urls"][name][:1], **plan["options"]).close()
    before = look_at_process()
    started = time.monotonic()
    told: dict[str, Any] = {}
    for name, cls in kinds.items():
        with load(cls, plan["urls"][name], **plan["options"]) as dataset:
            told[name] = tell(dataset, Path(plan["directory"], name))
    seconds = time.monotonic() - started
    try:
        load(InMemoryImageTextDataset, plan["secret_urls"], on_error="raise", **plan["options"])
    except LoadError:
        raised = traceback.format_exc()
    resolver.over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("in-memory-datasets"):  # inside a look-up that only ended now
            thread.join(60)
    told |= {"before": before, "after": look_at_process(), "seconds": seconds, "logs": logs.getvalue()}
    told |= {"raised": raised, "asked": resolver.asked}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
