"""Loading in several processes: the same store, bit for bit, and an end of all of them whatever happens."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.build import processes
from in_memory_datasets.errors import LoadError, StoreError
from in_memory_datasets.store.journal import num_journaled
from tests.process.conftest import MediaServer, make_media

LOOPBACK = FetchOptions(allow_private_addresses=True, retries=0)
NUM_ROWS = 60


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a load with two threads be one that is worth two processes."""
    monkeypatch.setattr(processes, "THREADS_PER_PROCESS", 1)
    monkeypatch.setattr(processes, "_MIN_THREADS", 2)
    monkeypatch.setattr(processes, "_MIN_ROWS", 0)
    start, started = processes.Processes._start, []

    def count(self: processes.Processes, number: int) -> None:
        started.append(number)
        start(self, number)

    monkeypatch.setattr(processes.Processes, "_start", count)
    yield
    assert set(started) == {0, 1}


def save_files(directory: Path, kind: str) -> list[str]:
    directory.mkdir()
    for i in range(NUM_ROWS):
        (directory / f"{i}.{kind}").write_bytes(make_media(f"/{i}.{kind}"))
    (directory / f"7.{kind}").write_bytes(b"no media at all, but long enough to be looked at")
    return [str(directory / f"{i}.{kind}") for i in range(NUM_ROWS)]


def same_bytes(first: Path, second: Path) -> bool:
    names = ("manifest.json", "samples.safetensors", "rows.arrow")
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize("storage", ["decoded", "encoded"])
@pytest.mark.parametrize("kind", ["png", "wav"])
@pytest.mark.parametrize("come_as", ["urls", "paths", "bytes"])
def test_the_store_is_that_of_one_process(
    server: MediaServer, tmp_path: Path, kind: str, storage: Any, come_as: str
) -> None:
    paths = save_files(tmp_path / "media", kind)
    values: list[Any] = [f"{server.url}/{i % 50}.{kind}" for i in range(NUM_ROWS)] if come_as == "urls" else list(paths)
    if come_as == "bytes":
        values = [Path(path).read_bytes() for path in paths]
    rows = [{"media": value, "caption": f"{i}"} for i, value in enumerate(values)]
    rows[3]["media"] = None
    cls: Any = InMemoryImageTextDataset if kind == "png" else InMemoryAudioTextDataset
    column = {"img_col": "media", "image_size": (16, 16)} if kind == "png" else {"audio_col": "media"}
    for name, num_threads in (("one", 1), ("two", 2)):
        with cls(rows, **column, storage=storage, num_threads=num_threads, fetch=LOOPBACK, progress=False) as dataset:
            assert dataset.failed_indices == ([3] if come_as == "urls" else [3, 7])
            dataset.save(tmp_path / name)
    assert same_bytes(tmp_path / "one", tmp_path / "two")


@pytest.mark.usefixtures("two_processes")
def test_objects_that_are_decoded_already_are_taken_as_they_are() -> None:
    pictures = [Image.new("L", (8, 8), level) for level in range(20)]
    rows: list[dict[str, Any]] = [{"image": picture, "caption": ""} for picture in pictures]
    rows += [{"image": np.full((8, 8, 3), level, np.uint8), "caption": ""} for level in range(20)]
    with InMemoryImageTextDataset(rows, "image", image_size=(8, 8), num_threads=2, progress=False) as dataset:
        assert [int(dataset[i]["image"][0, 0, 0]) for i in range(40)] == [*range(20), *range(20)]


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_is_killed_ends_the_load_and_says_what_to_do(server: MediaServer, tmp_path: Path) -> None:
    """What is in place then is not made again by the next load."""
    rows = [{"image_url": f"{server.url}/{i}.png", "caption": ""} for i in range(NUM_ROWS)]
    server.stalled_paths = {f"/{i}.png" for i in range(40, NUM_ROWS)}

    def kill_one() -> None:
        while sum(num_journaled(entry) for entry in tmp_path.iterdir() if entry.is_dir()) < 10:
            time.sleep(0.01)
        loads = [child for child in psutil.Process().children() if "build.processes" in " ".join(child.cmdline())]
        loads[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(LoadError, match=r"ended by signal 9.*cache_dir= goes on"):
        InMemoryImageTextDataset(rows, num_threads=2, fetch=LOOPBACK, cache_dir=tmp_path, progress=False)
    killer.join()
    server.release.set()
    server.stalled_paths = set()
    server.requests.clear()
    with InMemoryImageTextDataset(rows, num_threads=2, fetch=LOOPBACK, cache_dir=tmp_path, progress=False) as dataset:
        assert dataset.report.num_ok == NUM_ROWS
    assert len(server.requests) <= NUM_ROWS - 10


@pytest.mark.usefixtures("two_processes")
def test_what_is_no_samples_own_fault_ends_the_load(tmp_path: Path, limit_files: Callable[[int], None]) -> None:
    paths = save_files(tmp_path / "media", "png")
    rows = [{"image_url": path, "caption": ""} for path in paths]
    limit_files(100_000)
    with pytest.raises(StoreError, match="File too large"):
        InMemoryImageTextDataset(rows, num_threads=2, cache_dir=tmp_path / "cache", progress=False)


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Limit the size of files that this process and its children may write."""
    import resource

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_processes_end_with_the_one_that_began_them(server: MediaServer) -> None:
    """Also when that one is killed, and its script has no `if __name__ == "__main__":`."""
    script = """
        import sys
        from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
        from in_memory_datasets.build import processes
        processes.THREADS_PER_PROCESS, processes._MIN_THREADS, processes._MIN_ROWS = 1, 2, 0
        started = processes.Processes._start
        def start(self, number):
            started(self, number)
            print(self._processes[-1].popen.pid, flush=True)
        processes.Processes._start = start
        rows = [{"image_url": f"{sys.argv[1]}/{i}.png", "caption": ""} for i in range(200)]
        fetch = FetchOptions(allow_private_addresses=True, timeout=600.0)
        InMemoryImageTextDataset(rows, num_threads=2, fetch=fetch, progress=False)
    """
    server.stalls.set()
    command = [sys.executable, "-c", textwrap.dedent(script), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert server.asked.wait(60)
        watches = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    for watch in watches:
        assert select.select([watch], [], [], 60)[0], "a process outlived the one that began it"
        os.close(watch)
    server.release.set()


def test_few_threads_or_few_rows_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "Processes", begin)
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    rows = [{"image_url": buffer.getvalue(), "caption": ""} for _ in range(50)]
    for num_threads in (1, 7, 64):
        InMemoryImageTextDataset(rows, num_threads=num_threads, progress=False).close()
