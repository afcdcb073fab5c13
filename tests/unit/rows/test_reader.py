"""What a reader asks of the user's dataset, and how it refuses what it cannot read."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image

from in_memory_datasets import FetchOptions, InMemoryImageTextDataset, LoadError
from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows import RowReader, open_rows
from in_memory_datasets.schema import Row
from tests.unit.rows.media import png, stored, wav

PICTURE = {"bytes": png(5), "path": "a.png"}
CLIP = {"bytes": wav(5), "path": "a.wav"}


def open_them(data: Any, media_col: Any = "image", txt_col: Any = "caption", **changes: Any) -> RowReader:
    return open_rows(data, media_col=media_col, txt_col=txt_col, **{"max_samples": None, **changes})


def kind_of(value: Any) -> str:
    """Name a parameter alike in every process: some print where they lie in memory."""
    return value if isinstance(value, str) else type(value).__name__


def read(*arguments: Any, **changes: Any) -> list[Row]:
    return [row for rows in open_them(*arguments, **changes).batches() for row in rows]


def bytes_of(rows: list[Row]) -> list[Any]:
    return [row.source and (row.source.kind, row.source.value) for row in rows]


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when the Hub's library is made to decode or encode media, and let there be no torchcodec."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("media were decoded")

    for feature in (datasets.Image, datasets.Audio):
        monkeypatch.setattr(feature, "decode_example", refuse)
        monkeypatch.setattr(feature, "encode_example", refuse)
    monkeypatch.setitem(sys.modules, "torchcodec", None)


MEDIA = {
    "picture": (datasets.Image(), PICTURE, "media"),
    "clip": (datasets.Audio(), CLIP, "media"),
    "resampled clip": (datasets.Audio(sampling_rate=16_000), CLIP, "media"),
    "picture in a struct": ({"inner": datasets.Image(), "n": datasets.Value("int64")}, {"inner": PICTURE, "n": 1},
                            "media.inner"),
    "clip in a list": ([datasets.Audio()], [CLIP, CLIP], lambda row: row["media"][1]),
}  # fmt: skip


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("form", ["dataset", "formatted", "shuffled", "stream", "formatted stream", "taken stream"])
@pytest.mark.parametrize("kind", MEDIA)
def test_media_come_as_they_are_stored(kind: str, form: str) -> None:
    feature, value, media_col = MEDIA[kind]
    rows = [{"media": value, "caption": f"row {i}", "again": value} for i in range(40)]
    data = stored(rows, {"media": feature, "caption": datasets.Value("string"), "again": feature})
    match form:
        case "formatted":
            data = data.with_format("torch")
        case "shuffled":
            data = data.shuffle(seed=1)
        case "stream":
            data = data.to_iterable_dataset()
        case "formatted stream":
            data = data.to_iterable_dataset().with_format("numpy")
        case "taken stream":
            data = data.to_iterable_dataset().shuffle(seed=1, buffer_size=5).skip(1)
    found = read(data, media_col, max_samples=35)
    expected = PICTURE if "picture" in kind else CLIP
    assert bytes_of(found) == [("bytes", expected["bytes"])] * 35
    assert {row.source.name for row in found if row.source} == {expected["path"]}


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_generated_stream_of_declared_media_needs_no_codec() -> None:
    types = datasets.Features({"image": datasets.Audio(), "caption": datasets.Value("string")})
    data = datasets.IterableDataset.from_generator(two_clips, features=types)
    assert bytes_of(read(data)) == [("bytes", b"fLaC"), ("path", "/data/a.flac")]


def two_clips() -> Iterator[dict[str, Any]]:
    yield {"image": {"bytes": b"fLaC", "path": None}, "caption": "inline"}
    yield {"image": "/data/a.flac", "caption": "by path"}


def test_only_the_needed_columns_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[list[str]] = []
    iterate = datasets.Dataset.iter

    def spy(self: Any, *arguments: Any, **changes: Any) -> Any:
        columns.append(self.column_names)
        return iterate(self, *arguments, **changes)

    monkeypatch.setattr(datasets.Dataset, "iter", spy)
    data = datasets.Dataset.from_list([{"image": "a", "huge": "x", "meta": {"text": "t"}}])
    read(data, "image", "meta.text")
    read(data, "image", lambda row: row["meta"]["text"])
    assert columns == [["image", "meta"], ["image", "huge", "meta"]]


def test_a_row_that_holds_its_media_as_an_array_is_an_array() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    features = {"image": datasets.Array3D((2, 2, 3), "uint8"), "caption": datasets.Value("string")}
    data = datasets.Dataset.from_list([{"image": pixels, "caption": "a"}], features=datasets.Features(features))
    (row,) = read(data)
    assert row.source is not None
    np.testing.assert_array_equal(row.source.value, pixels)


def test_a_million_rows_are_opened_without_reading_them() -> None:
    table = pa.table({"image": pa.repeat("https://a.example/1.png", 10**6), "caption": pa.repeat("text", 10**6)})
    data = datasets.Dataset(table).select(range(999_999, -1, -1))
    tracemalloc.start()
    reader = open_them(data)
    first, last = next(reader.batches()), reader.take([999_999])
    assert reader.identity
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(first), last[0].index) == (1000, 999_999)
    assert peak < 5e6


class Counted:
    """A sequence that counts what is read of it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.num_reads = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.num_reads += 1
        return {"image": f"{index}.png", "caption": str(index)}


def test_a_long_sequence_is_read_as_its_rows_are_wanted() -> None:
    data = Counted(10**9)
    reader = open_them(data)
    assert data.num_reads == 1
    assert reader.take([10**8])[0].captions == ("100000000",)
    next(reader.batches())
    assert data.num_reads < 100


def test_an_iterator_is_read_as_its_rows_are_wanted_and_loses_none() -> None:
    rows = ({"image": f"{i}.png", "caption": str(i)} for i in itertools.count())
    reader = open_them(rows, max_samples=3)
    assert next(rows)["caption"] == "1"
    assert [row.captions for batch in reader.batches() for row in batch] == [("0",), ("2",), ("3",)]


def test_the_epoch_of_a_shuffled_stream_is_kept() -> None:
    def stream(epoch: int) -> Any:
        data = datasets.Dataset.from_list([{"image": str(i), "caption": ""} for i in range(50)])
        shuffled = data.to_iterable_dataset().shuffle(seed=1, buffer_size=50)
        shuffled.set_epoch(epoch)
        return shuffled

    orders = [[row.source.value for row in read(stream(epoch)) if row.source] for epoch in (0, 1)]
    assert orders == [[row["image"] for row in stream(epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert open_them(stream(0)).identity != open_them(stream(1)).identity


def test_the_shares_of_two_nodes_are_different_streams() -> None:
    data = datasets.Dataset.from_list([{"image": str(i), "caption": ""} for i in range(8)]).to_iterable_dataset()
    shares = [split_dataset_by_node(data, rank, 2) for rank in (0, 1)]
    assert [len(read(share)) for share in shares] == [4, 4]
    assert open_them(shares[0]).identity != open_them(shares[1]).identity


def test_streamed_files_are_told_apart_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    identities = []
    for text in ("one", "another"):
        file.write_text(f'{{"image": "a.png", "caption": "{text}"}}\n')
        data = datasets.load_dataset("json", data_files=str(file), split="train", streaming=True)
        assert [row.captions for row in read(data)] == [(text,)]
        identities.append(open_them(data).identity)
    assert len({*identities, None}) == 3


def test_what_cannot_be_told_from_others_has_no_identity() -> None:
    numbers = (str(i) for i in itertools.count())

    def numbered(row: Mapping[str, Any]) -> str:
        return next(numbers)

    rows = [{"image": "a.png", "caption": "a"}]
    for data in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        reader = open_them(data, txt_col=numbered)
        assert reader.identity is None
        assert [row.captions for batch in reader.batches() for row in batch] in ([("0",)], [("1",)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("laion/audio-dataset", "a str is no dataset"),
        (b"bytes", "a bytes is no dataset"),
        ({"image": ["a.png"]}, "a dict is no dataset"),
        (None, "a NoneType is no dataset"),
        (5, "a int is no dataset"),
        ([1, 2], "its rows are of type int: expected mappings"),
        (iter(["a.png"]), "its rows are of type str"),
        (pandas.DataFrame({"image": ["a.png"]}), r"DataFrame of pandas is no dataset: pass .*Dataset\.from_pandas"),
        (pandas.Series([{"image": "a.png"}]), "Series of pandas"),
        (pa.table({"image": ["a.png"]}), r"Table of pyarrow is no dataset: pass datasets\.Dataset\(table\)"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list([]), test=datasets.Dataset.from_list([])),
         "dictionary of splits: choose one of 'train', 'test'"),
        (datasets.IterableDatasetDict(), "dictionary of splits"),
    ],
    ids=kind_of,
)  # fmt: skip
def test_what_is_no_dataset_is_refused_with_what_would_be_one(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_them(data)


@pytest.mark.parametrize("max_samples", [0, -1, True, 2.0, "10"])
def test_max_samples_is_a_whole_number(max_samples: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"max_samples=.*expected a whole number of at least 1, None for all or 'auto'"
    ):
        open_them([{"image": "a", "caption": "b"}], max_samples=max_samples)


def test_max_samples_may_be_a_number_of_numpy() -> None:
    assert len(read([{"image": "a", "caption": "b"}] * 5, max_samples=np.int64(3))) == 3


def test_a_column_of_numbers_is_refused_as_captions() -> None:
    data = datasets.Dataset.from_list([{"image": "a.png", "label": 3}])
    for form in (data, data.to_iterable_dataset()):
        with pytest.raises(ConfigError, match="column 'label' holds int64, not captions"):
            open_them(form, txt_col="label")


@pytest.mark.parametrize("form", [[], iter([]), datasets.Dataset.from_dict({"image": [], "caption": []})], ids=kind_of)
def test_an_empty_dataset_is_opened_and_found_empty(form: Any) -> None:
    assert read(form) == []


def test_a_stream_that_turns_out_empty_is_found_empty() -> None:
    assert read(datasets.IterableDataset.from_generator(list)) == []
    with pytest.raises(LoadError, match="the dataset has no rows"):
        InMemoryImageTextDataset(datasets.IterableDataset.from_generator(list), "image", progress=False)


def test_a_module_of_the_users_that_is_called_datasets_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    assert len(read([{"image": "a", "caption": "b"}])) == 1


class Treacherous:
    """A sequence that cannot give every item."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == self.bad:
            raise RuntimeError(f"shard {index} is gone")
        return {"image": png(index * 50), "caption": f"row {index}"}


def test_an_item_that_its_sequence_cannot_give_costs_its_row_alone() -> None:
    rows = read(Treacherous(bad=2))
    assert [row.error is None for row in rows] == [True, True, False, True]
    assert rows[2].error is not None
    assert rows[2].error.reason == "bad_row"
    assert "row 2 is unusable: reading it: RuntimeError: shard 2 is gone" in str(rows[2].error)


def test_a_sequence_whose_first_item_cannot_be_read_says_why() -> None:
    with pytest.raises(ConfigError, match=r"row 0 cannot be read.*RuntimeError: shard 0 is gone"):
        open_them(Treacherous(bad=0))


def test_rows_of_any_kind_of_damage_leave_the_others_whole() -> None:
    def caption(row: Mapping[str, Any]) -> Any:
        if row["caption"] == "raise":
            raise ValueError("no caption at https://me:secret@a.example/x for \ud83d")
        return row["caption"]

    picture = png(100)
    rows: list[Any] = [
        {"image": picture, "caption": "whole"},
        {"image": picture, "caption": "raise"},
        {"image": picture, "caption": b"\xff"},
        {"image": picture, "caption": "cut \ud83d"},
        {"image": picture, "caption": float("nan")},
        {"image": 5, "caption": "a number"},
        {"image": None, "caption": "nothing"},
        {"image": "https://a.example/\ud83d", "caption": "no URL"},
        {"image": {"\ud83d": 1}, "caption": "no media"},
        {"image": picture, "caption": {"\ud83d": 1}},
        "no mapping",
        {"image": picture, "caption": ["last"]},
    ]
    fetch = FetchOptions(retries=0)
    with InMemoryImageTextDataset(rows, "image", caption, image_size=(4, 4), progress=False, fetch=fetch) as dataset:
        assert dataset.failed_indices == [1, 2, 5, 6, 7, 8, 9, 10]
        assert dataset.report.by_reason == {"bad_row": 6, "empty": 1, "bad_url": 1}
        assert {failure.stage for failure in dataset.report.failures} == {"row"}
        captions = [dataset[i]["caption"] for i in range(len(rows))]
        assert captions[0::3] == ["whole", "cut �", "nothing", ""]
        assert captions[11] == "last"
        details = [failure.detail for failure in dataset.report.failures]
        assert "ValueError: no caption at" in details[0]
        assert "secret" not in str(details)


def test_a_media_callable_that_raises_costs_its_row_alone_and_keeps_its_caption() -> None:
    rows = read([{"path": "a.png", "caption": "a"}, {"path": None, "caption": "b"}], lambda row: row["path"].strip())
    assert bytes_of(rows) == [("path", "a.png"), None]
    assert rows[1].captions == ("b",)
    assert rows[1].error is not None
    assert "row 1 is unusable: its media (<lambda>): AttributeError" in str(rows[1].error)


def decoded_values(level: int) -> list[Any]:
    frames = np.full(5, level, np.float32)
    return [
        np.full((2, 2, 3), level, np.uint8),
        Image.new("L", (2, 2), level),
        {"array": frames, "sampling_rate": 8000},
        {"array": frames, "sampling_rate": 8000 + level},
        {"array": frames.astype(object), "sampling_rate": 8000},
        {"array": frames.tolist(), "sampling_rate": 8000},
        Decoder(level),
    ]


@dataclass
class Decoder:
    """An object that only its own library can read."""

    level: int


def test_decoded_values_are_told_apart_by_their_content() -> None:
    def identities() -> list[str | None]:
        values = decoded_values(1) + decoded_values(2)
        return [open_them([{"image": value, "caption": ""}]).identity for value in values]

    found = identities()
    assert len(set(found)) == len(found)
    assert None not in found
    assert found == identities()
