"""Fetching fsspec URLs: memory, file and a real S3 API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import fsspec
import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import FetchOptions, Source

MakeFetcher = Callable[..., Fetcher]


@pytest.fixture
def memory_file() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/pictures/a.jpg", b"in memory")
    fs.pipe_file("/pictures/empty.jpg", b"")
    yield "memory://pictures/a.jpg"
    fs.rm("/pictures", recursive=True)


def fail(fetcher: Fetcher, url: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(Source("fsspec", url))
    return caught.value


def test_memory_urls_are_read(memory_file: str, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(allow_private_addresses=False, allow_local_files=True)
    fetched = fetcher.fetch(Source("fsspec", memory_file))
    assert (fetched.data, fetched.num_bytes, fetched.num_attempts) == (b"in memory", 9, 1)
    assert fail(fetcher, "memory://pictures/none.jpg").reason == "not_found"
    assert fail(fetcher, "memory://pictures/empty.jpg").reason == "empty"
    assert fail(fetcher, "memory://pictures").reason == "unreadable"
    assert fail(make_fetcher(max_bytes=8, allow_local_files=True), memory_file).reason == "too_large"


def test_file_urls_are_read(tmp_path: Path, make_fetcher: MakeFetcher) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(b"on disk")
    fetcher = make_fetcher(allow_local_files=True)
    assert fetcher.fetch(Source("fsspec", f"file://{path}")).data == b"on disk"
    assert fail(fetcher, f"file://{tmp_path}/none.jpg").reason == "not_found"
    assert fail(fetcher, f"file://{tmp_path}").reason == "unreadable"


def test_chained_urls_are_read(tmp_path: Path, make_fetcher: MakeFetcher) -> None:
    with ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("in/a.jpg", b"zipped")
    fetcher = make_fetcher(allow_private_addresses=False, allow_local_files=True)
    assert fetcher.fetch(Source("fsspec", f"zip://in/a.jpg::{tmp_path}/x.zip")).data == b"zipped"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "FILE:///etc/hostname",
        "local:///etc/hostname",
        "memory://pictures/a.jpg",
        "dir://hostname::file:///etc",
        "zip://a.jpg::/data/x.zip",
        "zip://a.jpg::file:///data/x.zip",
        "simplecache::file:///etc/hostname",
        "file:///etc/hostname::s3://bucket/key",
        "git:///srv/repository:main@a.jpg",
        "reference://a.jpg",
    ],
)
@pytest.mark.parametrize("allow_private_addresses", [False, True])
def test_what_names_this_machine_is_refused_unless_it_was_asked_for(
    url: str, allow_private_addresses: bool, memory_file: str, make_fetcher: MakeFetcher
) -> None:
    error = fail(make_fetcher(allow_private_addresses=allow_private_addresses, retries=3), url)
    assert (error.reason, error.attempts) == ("local_file", 0)
    assert "FetchOptions(allow_local_files=True)" in str(error)


@pytest.mark.parametrize(
    "url", ["simplecache::http://127.0.0.1/x", "ftp://127.0.0.1/x", "zip://a::https://a.example/x.zip", "sftp://h/x"]
)
def test_a_protocol_that_leads_past_the_address_guard_is_refused(url: str, make_fetcher: MakeFetcher) -> None:
    error = fail(make_fetcher(allow_private_addresses=False), url)
    assert error.reason == "blocked_address"
    assert "allow_private_addresses=True" in str(error)


def test_a_protocol_whose_package_is_missing_is_named(make_fetcher: MakeFetcher) -> None:
    error = fail(make_fetcher(), "gdrive://folder/a.jpg")
    assert error.reason == "missing_extra"
    assert "gdrive" in str(error)


def test_an_unknown_protocol_is_a_bad_url(make_fetcher: MakeFetcher) -> None:
    assert fail(make_fetcher(), "nosuchprotocol://a/b.jpg").reason == "bad_url"


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    """Fill a bucket with twenty objects and an empty one."""
    s3.mkdir("pictures")
    for number in range(20):
        s3.pipe_file(f"pictures/{number}.jpg", b"object %d" % number)
    s3.pipe_file("pictures/empty.jpg", b"")
    return "pictures"


def test_s3_objects_are_read_concurrently_under_the_default_guard(bucket: str) -> None:
    """Its endpoint is set by the user, not by the URL, and so passes the address guard."""
    with Fetcher(FetchOptions(retries=0)) as fetcher:
        futures = [fetcher.submit(Source("fsspec", f"s3://{bucket}/{number}.jpg")) for number in range(20)]
        assert [future.result(30).data for future in futures] == [b"object %d" % number for number in range(20)]


def test_s3_failures_have_reasons(bucket: str, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher()
    missing = fail(fetcher, f"s3://{bucket}/none.jpg")
    assert (missing.reason, missing.attempts) == ("not_found", 1)
    assert str(missing).startswith("s3://pictures/none.jpg: ")
    assert fail(fetcher, "s3://no-such-bucket/none.jpg").reason == "not_found"
    assert fail(fetcher, f"s3://{bucket}/empty.jpg").reason == "empty"
    assert fail(make_fetcher(max_bytes=5), f"s3://{bucket}/0.jpg").reason == "too_large"
