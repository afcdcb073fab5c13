"""What third-party storage back ends do, and what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.fetch.files import judge_file_error
from in_memory_datasets.schema import FetchOptions, Source

RELEASED = threading.Event()


class OddStorage(AbstractFileSystem):  # type: ignore[misc]
    """Answers by the first part of the path."""

    protocol = "odd"
    cachable = False
    num_calls: int = 0

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        match path.rpartition("/")[2]:
            case "stalled":
                RELEASED.wait(30)
            case "broken":
                raise RuntimeError("https://me:geheim@store.example says no")
            case "flaky":
                OddStorage.num_calls += 1
                if OddStorage.num_calls == 1:
                    raise ConnectionResetError("gone")
            case "unmeasured":
                return {"name": path, "size": None, "type": "file"}
        return {"name": path, "size": 10, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        match path.rpartition("/")[2]:
            case "short":
                return b"123"
            case "unreadable":
                raise KeyError("no such key")
        return b"0123456789"

    def _open(self, path: str, *arguments: Any, **kwargs: Any) -> Any:
        import io

        return io.BytesIO(b"0123456789")


@pytest.fixture(autouse=True)
def odd_storage() -> Iterator[None]:
    fsspec.register_implementation("odd", OddStorage, clobber=True)
    OddStorage.num_calls = 0
    RELEASED.clear()
    yield
    RELEASED.set()


def make_fetcher(**options: Any) -> Fetcher:
    return Fetcher(FetchOptions(**{"allow_private_addresses": True, "retries": 1, "timeout": 5.0, **options}))


@pytest.mark.parametrize(
    ("name", "reason", "attempts"),
    [("broken", "unreadable", 1), ("unreadable", "unreadable", 1), ("short", "truncated", 2)],
)
def test_whatever_a_back_end_raises_is_a_failure_of_the_sample(name: str, reason: str, attempts: int) -> None:
    with make_fetcher() as fetcher, pytest.raises(FetchError) as caught:
        fetcher.fetch(Source("fsspec", f"odd://bucket/{name}"))
    assert (caught.value.reason, caught.value.attempts) == (reason, attempts)
    assert "geheim" not in str(caught.value)


def test_a_broken_connection_is_tried_again() -> None:
    with make_fetcher() as fetcher:
        assert fetcher.fetch(Source("fsspec", "odd://bucket/flaky")).num_attempts == 2


def test_an_object_of_unknown_size_is_read_up_to_the_limit() -> None:
    with make_fetcher(max_bytes=10) as fetcher:
        assert fetcher.fetch(Source("fsspec", "odd://bucket/unmeasured")).data == b"0123456789"
    with make_fetcher(max_bytes=9) as fetcher, pytest.raises(FetchError) as caught:
        fetcher.fetch(Source("fsspec", "odd://bucket/unmeasured"))
    assert caught.value.reason == "too_large"


def test_a_storage_that_hangs_ends_in_a_timeout_and_does_not_hold_up_the_others() -> None:
    with make_fetcher(timeout=0.2, retries=0, concurrency=2) as fetcher:
        futures = [fetcher.submit(Source("fsspec", "odd://bucket/stalled")) for _ in range(6)]
        for future in futures:
            error = future.exception(10)
            assert isinstance(error, FetchError)
            assert error.reason == "timeout"
        assert fetcher.fetch(Source("fsspec", "odd://bucket/good")).num_bytes == 10
        RELEASED.set()


@pytest.mark.parametrize(
    ("error", "reason", "transient"),
    [
        (FileNotFoundError("x"), "not_found", False),
        (PermissionError("x"), "permission", False),
        (IsADirectoryError("x"), "unreadable", False),
        (TimeoutError("x"), "timeout", True),
        (ConnectionResetError("x"), "reset", True),
        (OSError(5, "input/output error"), "unreadable", True),
        (ValueError("x"), "unreadable", False),
    ],
    ids=repr,
)
def test_errors_of_files_have_the_reason_one_expects(error: Exception, reason: str, transient: bool) -> None:
    failure = judge_file_error(error)
    assert (failure.reason, failure.transient) == (reason, transient)
