"""The memory of a driver that hands rows over to a cluster, which counts them and lets them go.

python -m benchmarks.scale.driver ADDRESS NUM_ROWS [FILE]   # one turn, in a process of its own; prints JSON
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from benchmarks.load.figures import Figures, spread
from benchmarks.processes.jobs import JobError
from benchmarks.scale.clusters import connected, running
from benchmarks.scale.plan import Plan

_ROOT = Path(__file__).parents[2]
_LOOK_SECONDS = 0.02
_ROWS_AT_ONCE = 1_000  # as datasets writes them
# What /proc/<pid>/status calls them: memory of the process, files it maps, and Ray's object store.
_KINDS = {"RssAnon": "own_mb", "RssFile": "mapped_mb", "RssShmem": "store_mb"}


def url_of(i: int) -> str:
    return f"https://pictures.example.org/{i % 97:02d}/{i:012d}.jpg"


def caption_of(i: int) -> str:
    return f"picture number {i:,} of very many, seen from afar"


class Rows(Sequence[Any]):
    """Rows that are made when they are asked for."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, i: Any) -> Any:
        return {"image_url": url_of(i), "caption": caption_of(i)}


@ray.remote(num_cpus=0)
class Counter:
    """Stands for the coordinator: counts rows, and lets them go."""

    def __init__(self) -> None:
        self._num_rows = 0

    async def add_rows(self, number: int, records: Any, num_rows: int) -> None:
        self._num_rows += num_rows

    async def end_rows(self, *_: Any) -> None:
        """Nothing is left to do."""

    async def num_rows(self) -> int:
        return self._num_rows


def measure_driver(plan: Plan) -> Figures:
    """Hand over rows from a file, and rows of a sequence, in processes of their own."""
    rows = []
    directory = plan.build / "scale" / "rows"
    with running(1) as cluster:
        for source, counts in (("file", plan.stored_rows), ("sequence", plan.listed_rows)):
            for num_rows in counts:
                files = [f"{_write(directory, num_rows)}"] if source == "file" else []
                try:
                    turns = [_run(cluster.address, f"{num_rows}", *files) for _ in range(plan.slow_repeats)]
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                row: Figures = {"source": source, "num_rows": num_rows}
                row["per_s"] = spread(num_rows / turn["seconds"] for turn in turns)
                row |= {name: spread(turn[name] for turn in turns) for name in ("before_mb", *_KINDS.values())}
                rows.append(row)
                print(f"  {source}, {num_rows:,} rows: {row['own_mb']['median']:.1f} MB", flush=True)
    return {"repeats": plan.slow_repeats, "rows": rows}


def _write(directory: Path, num_rows: int) -> Path:
    """Write rows as a dataset is saved."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "rows.arrow"
    schema = pa.schema({"image_url": pa.string(), "caption": pa.string()})
    with pa.OSFile(f"{path}", "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            numbers = range(start, min(num_rows, start + _ROWS_AT_ONCE))
            writer.write_batch(pa.record_batch([list(map(url_of, numbers)), list(map(caption_of, numbers))], schema))
    return path


def _run(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale.driver", *arguments]
    result = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
    if result.returncode:
        raise JobError(result.stderr[-2000:])
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


@contextmanager
def _watched(peaks: dict[str, float]) -> Iterator[None]:
    """Find the largest of each kind of memory in the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            for kind, size in _sizes().items():
                peaks[kind] = max(peaks.get(kind, size), size)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


def _sizes() -> dict[str, float]:
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0][:-1]: int(words[1]) * 1024 / 1e6 for words in lines if words and words[0][:-1] in _KINDS}


def main(address: str, num_rows: int, file: str | None = None) -> None:
    """Hand over, and say what that took beyond what the process had before."""
    import datasets

    from in_memory_datasets.rows import open_rows
    from in_memory_datasets.scale.sharded import _send_rows

    cluster = type("Running", (), {"address": address})
    with connected(cluster):  # type: ignore[arg-type]
        counter = Counter.remote()  # type: ignore[attr-defined]
        ray.get(counter.num_rows.remote())
        data = Rows(num_rows) if file is None else datasets.Dataset.from_file(file)
        reader = open_rows(data, media_col="image_url", txt_col="caption", max_samples=None)
        before, peaks = _sizes(), _sizes()
        started = time.perf_counter()
        with _watched(peaks):
            _send_rows(counter, reader)
        seconds = time.perf_counter() - started
        if (counted := ray.get(counter.num_rows.remote())) != num_rows:
            raise RuntimeError(f"{counted:,} of {num_rows:,} rows were handed over")
    grown = {name: peaks[kind] - before[kind] for kind, name in _KINDS.items()}
    print(json.dumps({"seconds": seconds, "before_mb": sum(before.values()), **grown}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
