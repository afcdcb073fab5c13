"""Paths and URLs of this machine in a dataset, and which of them are read unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from in_memory_datasets import FetchOptions, ImageTextDataset, InMemoryImageTextDataset, LoadError
from in_memory_datasets.rows import RowReader, open_rows, source_from_value
from in_memory_datasets.schema import names_this_machine
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
def test_a_path_is_one_whatever_stands_beside_it(make: Any) -> None:
    found = sources(open_column(make, [URL, "/data/a.png", "images/b.png"]))
    assert [(source.kind, source.value) for source in found] == [
        ("url", URL),
        ("path", "/data/a.png"),
        ("path", "images/b.png"),
    ]


@pytest.mark.parametrize(
    "value", ["javascript:alert(1)", "JavaScript:alert(1)", "mailto:me@a.example", "about:blank", "blob:https://a/b-c"]
)
def test_what_only_browsers_read_is_no_path(value: str) -> None:
    error = sources(open_column(as_list, [value]))[0]
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
    """Rows whose first is a URL that leads nowhere, followed by the same file as a path and as two URLs."""
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
    with InMemoryImageTextDataset(mixed, image_size=(4, 4), progress=False) as dataset:
        assert dataset.failed_indices == [0, 2, 3]
    with pytest.raises(LoadError) as caught:
        InMemoryImageTextDataset([mixed[0], *mixed[2:]], image_size=(4, 4), progress=False)
    assert "2 local_file" in str(caught.value)
    assert "fetch=FetchOptions(allow_local_files=True)" in str(caught.value)
    assert "fetch=FetchOptions(allow_private_addresses=True)" in str(caught.value)


def test_on_the_fly_the_rule_is_the_same(mixed: list[dict[str, Any]]) -> None:
    dataset = ImageTextDataset(mixed, image_size=(4, 4), on_error="raise")
    with pytest.raises(LoadError, match="allow_local_files=True"):
        dataset[2]
    assert int(dataset[1]["image"].float().mean()) == 7


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
