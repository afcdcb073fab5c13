"""Paths and URLs of this machine in a dataset, and which of them are read unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from in_memory_datasets import FetchOptions, ImageTextDataset, InMemoryImageTextDataset, LoadError
from in_memory_datasets.rows import RowReader, open_rows, source_from_value
from in_memory_datasets.schema import Source, names_this_machine
from tests.unit.rows.media import png

URL = "https://a.example/a.png"


def as_list(rows: list[dict[str, Any]]) -> Any:
    return rows


def as_stream(rows: list[dict[str, Any]]) -> Any:
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


def as_iterator(rows: list[dict[str, Any]]) -> Any:
    return iter(rows)


CONTAINERS = [as_list, datasets.Dataset.from_list, as_stream, as_iterator]


def open_column(make: Callable[[list[dict[str, Any]]], Any], values: list[Any]) -> RowReader:
    rows = [{"image": value, "caption": ""} for value in values]
    return open_rows(make(rows), media_col="image", txt_col="caption", max_samples=None)


def sources(reader: RowReader) -> list[Any]:
    return [row.source or row.error for rows in reader.batches() for row in rows]


@pytest.mark.parametrize("make", CONTAINERS)
def test_a_path_in_a_column_of_urls_is_a_file_url(make: Any) -> None:
    """Only where local files are asked for is such a URL read."""
    found = sources(open_column(make, [URL, "/etc/hostname", "images/cat.png", "C:/cat.png"]))
    assert found[0] == Source("url", URL, "a.png")
    assert [(source.kind, source.value, source.name) for source in found[1:]] == [
        ("fsspec", "file:///etc/hostname", "hostname"),
        ("fsspec", "file://images/cat.png", "cat.png"),
        ("fsspec", "file://C:/cat.png", "cat.png"),
    ]


@pytest.mark.parametrize("make", CONTAINERS)
def test_a_path_in_a_column_of_paths_stays_one(make: Any) -> None:
    found = sources(open_column(make, ["/data/a.png", URL, "/data/b.png"]))
    assert [source.kind for source in found] == ["path", "url", "path"]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (URL, "fsspec"),
        ("//a.example/a.png", "fsspec"),
        ("s3://bucket/a.png", "fsspec"),
        ("zip://a.png::hf://datasets/a/b/c.zip", "fsspec"),
        ("zip://a.png::/data/x.zip", "path"),
        ("file:///data/a.png", "path"),
        ("/data/a.png", "path"),
        ("data:image/png;base64,R0lG", "path"),
    ],
)
def test_the_first_source_tells_what_kind_of_column_it_is(first: str, kind: str) -> None:
    found = sources(open_column(as_list, [None, "", first, "/data/b.png"]))
    assert found[3].kind == kind


@pytest.mark.parametrize("make", [as_list, datasets.Dataset.from_list])
def test_rows_out_of_the_middle_are_what_they_are_in_order(make: Any) -> None:
    assert open_column(make, [None, URL, "/data/b.png"]).take([2])[0].source == source_from_value("file:///data/b.png")
    assert open_column(make, [None, "/data/a.png", "/data/b.png"]).take([2])[0].source == Source(
        "path", "/data/b.png", "b.png"
    )
    assert open_column(make, [None, None]).take([1])[0].source is None


def test_paths_of_media_values_count_alike() -> None:
    found = sources(open_column(as_list, [{"bytes": None, "path": URL}, {"bytes": None, "path": "/data/b.png"}]))
    assert (found[1].kind, found[1].value) == ("fsspec", "file:///data/b.png")


@pytest.mark.parametrize("value", ["javascript:alert(1)", "mailto:me@a.example", "about:blank"])
def test_other_urls_in_a_column_of_urls_are_no_paths(value: str) -> None:
    error = sources(open_column(as_list, [URL, value]))[1]
    assert (error.stage, error.reason) == ("row", "bad_url")
    assert "no URL of a kind that can be fetched" in str(error)


@pytest.mark.parametrize("text", ["file:/etc/hostname", "FILE:/etc/hostname", "local:/etc/hostname"])
def test_a_file_url_in_short_is_one(text: str) -> None:
    source = source_from_value(text)
    assert source is not None
    assert (source.kind, source.value.lower().endswith(":///etc/hostname")) == ("fsspec", True)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("file:///etc/hostname", True),
        ("FILE:///etc/hostname", True),
        ("memory://a", True),
        ("dir://a::file:///etc", True),
        ("simplecache::file:///etc/hostname", True),
        ("zip://a::/data/x.zip", True),
        ("zip://a::x.zip", True),
        ("file:///etc/hostname::s3://bucket/a", True),
        ("git:///repository:main@a", True),
        ("s3://bucket/a", False),
        ("hf://datasets/a/b", False),
        ("simplecache::s3://bucket/a", False),
        ("zip://a::s3://bucket/x.zip", False),
        ("ftp://a.example/a", False),
    ],
)
def test_what_names_this_machine(url: str, here: bool) -> None:
    assert names_this_machine(url) == here


@pytest.fixture
def mixed(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows whose first is a URL that leads nowhere, followed by the same file in three spellings."""
    path = tmp_path / "a b.png"
    path.write_bytes(png(7))
    values = ["https://127.0.0.1:1/a.png", str(path), f"file://{path}", f"file:{path}"]
    return [{"image_url": value, "caption": ""} for value in values]


def test_local_files_are_read_where_they_are_asked_for(mixed: list[dict[str, Any]]) -> None:
    fetch = FetchOptions(allow_local_files=True, retries=0)
    with InMemoryImageTextDataset(mixed, image_size=(4, 4), fetch=fetch, progress=False) as dataset:
        assert dataset.failed_indices == [0]
        assert [int(dataset[i]["image"].float().mean()) for i in (1, 2, 3)] == [7, 7, 7]


def test_and_nowhere_else_and_the_error_names_the_option(mixed: list[dict[str, Any]]) -> None:
    with pytest.raises(LoadError) as caught:
        InMemoryImageTextDataset(mixed, image_size=(4, 4), progress=False)
    assert "3 local_file" in str(caught.value)
    assert "fetch=FetchOptions(allow_local_files=True)" in str(caught.value)
    assert "fetch=FetchOptions(allow_private_addresses=True)" in str(caught.value)


def test_on_the_fly_the_rule_is_the_same(mixed: list[dict[str, Any]]) -> None:
    dataset = ImageTextDataset(mixed, image_size=(4, 4), on_error="raise")
    with pytest.raises(LoadError, match="allow_local_files=True"):
        dataset[1]


def test_what_was_refused_is_read_by_a_retry_that_may(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    """The rule holds for what is retried from a saved store alone as well, which keeps the URLs."""
    rows = [{"image_url": png(9), "caption": ""}, *mixed[2:]]
    with InMemoryImageTextDataset(rows, image_size=(4, 4), progress=False) as dataset:
        assert dataset.report.by_reason == {"local_file": 2}
        dataset.save(tmp_path / "saved", progress=False)
    with InMemoryImageTextDataset.load(tmp_path / "saved") as loaded:
        assert loaded.retry_failed().by_reason == {"local_file": 2}
    with InMemoryImageTextDataset.load(tmp_path / "saved", fetch=FetchOptions(allow_local_files=True)) as loaded:
        assert loaded.retry_failed(reasons={"local_file"}).num_failed == 0
