"""Fetching local files and inline sources."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from in_memory_datasets.errors import ConfigError, FetchError, InMemoryDatasetsError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.fetch.object_stores import find_protocols
from in_memory_datasets.schema import FetchOptions, Source


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(FetchOptions(retries=0, max_bytes=100_000, timeout=5.0)) as fetcher:
        yield fetcher


def fail(fetcher: Fetcher, source: Source) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(source)
    return caught.value


def test_a_file_is_read_whole(fetcher: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "-ä 1.jpg"
    path.write_bytes(bytes(100_000))
    for value in (str(path), path):
        fetched = fetcher.fetch(Source("path", value))
        assert fetched.data == bytes(100_000)
        assert (fetched.num_bytes, fetched.num_attempts, fetched.host) == (100_000, 1, "")


def test_what_is_no_readable_file_has_a_reason(
    fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(100_001))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        listener.bind("socket")
        reasons = {
            name: fail(fetcher, Source("path", str(tmp_path / name))).reason
            for name in ("none", "empty/below", "empty", "large", "pipe", "socket", ".", "loop", "nul\0")
        }
    assert reasons == {
        "none": "not_found",
        "empty/below": "not_found",
        "empty": "empty",
        "large": "too_large",
        "pipe": "unreadable",
        "socket": "unreadable",
        ".": "unreadable",
        "loop": "unreadable",
        "nul\0": "unreadable",
    }
    assert fail(fetcher, Source("path", "/dev/zero")).reason == "unreadable"


@pytest.fixture
def locked_file() -> Iterator[Path]:
    """Make a file that may be seen and not read, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # those of tmp_path are closed to everybody but their owner
        path = Path(directory) / "locked"
        path.write_bytes(b"abc")
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)  # nobody, in all threads
        try:
            yield path
        finally:
            os.seteuid(user)


def test_a_file_without_permission_has_a_reason(fetcher: Fetcher, locked_file: Path) -> None:
    error = fail(fetcher, Source("path", str(locked_file)))
    assert error.reason == "permission"
    assert "Permission denied" in str(error)


def test_the_message_names_file_problem_and_way_out(fetcher: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "large.wav"
    path.write_bytes(bytes(100_001))
    error = fail(fetcher, Source("path", str(path)))
    assert str(error) == (
        f"{path}: it has 100,001 bytes, at most 100,000 are fetched; raise FetchOptions(max_bytes=...)"
    )
    assert (error.stage, error.host, error.attempts) == ("fetch", "", 1)


def test_inline_sources_are_done_at_once(fetcher: Fetcher) -> None:
    picture = object()
    done = fetcher.submit(Source("object", picture))
    assert done.done()
    assert (done.result().data, done.result().num_bytes) == (picture, 0)
    inline = fetcher.fetch(Source("bytes", b"abc", "a.jpg"))
    assert (inline.data, inline.num_bytes, inline.num_attempts) == (b"abc", 3, 0)
    inline.release()
    assert fail(fetcher, Source("bytes", b"", "a.jpg")).reason == "empty"
    assert fail(fetcher, Source("bytes", bytes(100_001))).reason == "too_large"


def test_a_closed_fetcher_says_so() -> None:
    fetcher = Fetcher()
    fetcher.close()
    for source in (Source("bytes", b"abc"), Source("path", "/none")):
        with pytest.raises(InMemoryDatasetsError, match="closed"):
            fetcher.submit(source)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_buffered_bytes=0"):
        Fetcher(max_buffered_bytes=0)


def test_data_is_not_shown_by_repr(fetcher: Fetcher) -> None:
    assert "abc" not in repr(fetcher.fetch(Source("bytes", b"abc")))


def test_protocols_of_chained_urls_are_all_found() -> None:
    assert find_protocols("S3://bucket/a") == ["s3"]
    assert find_protocols("simplecache::HTTP://a.example/x") == ["simplecache", "http"]
