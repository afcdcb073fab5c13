"""Local files by the short way, and when they are sent the long one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from in_memory_datasets.fetch import file_readers
from in_memory_datasets.fetch.byte_budget import ByteBudget
from in_memory_datasets.fetch.file_readers import FileReaders
from in_memory_datasets.fetch.transfers import Done, Fetched
from in_memory_datasets.schema import Source


class Ways:
    """Readers, what they brought, and what they sent the long way."""

    def __init__(self, **options: Any) -> None:
        self.brought: SimpleQueue[Any] = SimpleQueue()
        self.sent: SimpleQueue[str] = SimpleQueue()
        defaults = {"max_bytes": 1000, "timeout_seconds": 60.0, "max_threads": 4}
        budget = options.pop("budget", ByteBudget(10**6))
        self.readers = FileReaders(budget, long_way=self._long_way, **{**defaults, **options})

    def _long_way(self, source: Source, done: Done) -> None:
        self.sent.put(str(source.value))

    def read(self, path: Path | str) -> None:
        self.readers.begin(Source("path", str(path)), self.brought.put)


@contextmanager
def ways(**options: Any) -> Iterator[Ways]:
    ways = Ways(**options)
    yield ways
    ways.readers.close(5.0)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[str, int], Path]:
    def make(name: str, num_bytes: int) -> Path:
        (tmp_path / name).write_bytes(bytes(num_bytes))
        return tmp_path / name

    return make


def test_files_arrive_whole_and_counted(make_file: Callable[[str, int], Path]) -> None:
    with ways() as both:
        for number in range(1, 200):
            both.read(make_file(f"{number}", number))
        brought: list[Fetched] = [both.brought.get(timeout=30) for _ in range(1, 200)]
    assert sorted(len(fetched.data) for fetched in brought) == list(range(1, 200))
    assert {fetched.num_attempts for fetched in brought} == {1}


def test_what_is_not_simply_read_goes_the_long_way(tmp_path: Path, make_file: Callable[[str, int], Path]) -> None:
    os.mkfifo(tmp_path / "pipe")
    odd = [make_file("empty", 0), make_file("large", 1001), tmp_path, tmp_path / "none", tmp_path / "pipe", "nul\0"]
    with ways() as both:
        for path in odd:
            both.read(path)
        assert sorted(both.sent.get(timeout=30) for _ in odd) == sorted(map(str, odd))


def test_a_file_that_finds_no_memory_goes_the_long_way_where_it_can_wait(make_file: Callable[[str, int], Path]) -> None:
    with ways(budget=ByteBudget(100)) as both:
        both.read(make_file("first", 80))
        first: Fetched = both.brought.get(timeout=30)
        both.read(make_file("second", 80))
        assert both.sent.get(timeout=30).endswith("second")
        first.release()
        both.read(make_file("third", 80))
        assert len(both.brought.get(timeout=30).data) == 80


def test_a_read_that_hangs_is_given_up_and_the_next_ones_are_read(
    monkeypatch: pytest.MonkeyPatch, make_file: Callable[[str, int], Path]
) -> None:
    """As in a network file system whose server is gone."""
    goes_on, read = threading.Event(), os.read

    def hang(fd: int, size: int) -> bytes:
        if size == 13:
            goes_on.wait(60)
        return read(fd, size)

    monkeypatch.setattr(file_readers.os, "read", hang)
    budget = ByteBudget(1000)
    with ways(timeout_seconds=0.1, max_threads=1, budget=budget) as both:
        both.read(make_file("hangs", 13))
        both.read(make_file("reads", 14))
        assert both.sent.get(timeout=30).endswith("hangs")
        fetched: Fetched = both.brought.get(timeout=30)
        assert len(fetched.data) == 14
        fetched.release()
        goes_on.set()
    assert budget.used_bytes == 0


def test_a_slow_disk_is_read_by_more_threads_when_somebody_waits(
    monkeypatch: pytest.MonkeyPatch, make_file: Callable[[str, int], Path]
) -> None:
    everybody, read = threading.Barrier(4), os.read

    def wait_for_others(fd: int, size: int) -> bytes:
        everybody.wait(60)
        return read(fd, size)

    monkeypatch.setattr(file_readers.os, "read", wait_for_others)
    with ways(max_threads=4) as both:
        for number in range(1, 9):
            both.read(make_file(f"{number}", number))
        while both.brought.qsize() < 8:
            both.readers.hurry()
    assert {thread.name for thread in threading.enumerate() if "read-" in thread.name} == set()


def test_after_the_end_everything_goes_the_long_way(make_file: Callable[[str, int], Path]) -> None:
    with ways() as both:
        pass
    both.read(make_file("late", 5))
    assert both.sent.get(timeout=30).endswith("late")
