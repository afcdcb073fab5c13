"""What every reader of rows must do, whatever the user's dataset is: one suite, run on each kind of dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch.utils.data

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows import RowReader, open_rows
from in_memory_datasets.schema import Row

NUM_ROWS = 70  # more than two batches of rows that hold their media
MAX_BATCH = 1000
TEXTS = ("A cake. ", "", "  tabs\t and\nlines", "ä 日本 😀", "[music] plays", '{"quoted"}', "'low', 'calm'", "x" * 5000)


def record(i: int, word: str = "") -> dict[str, Any]:
    return {
        "image_url": f"/data/{i}.png",
        "thumbnail": f"/small/{i}.png",
        "caption": word + TEXTS[i % len(TEXTS)],
        "title": f"title {i}",
        "width": i,
    }


def records(num_rows: int = NUM_ROWS, word: str = "") -> list[dict[str, Any]]:
    return [record(i, word) for i in range(num_rows)]


def generate(num_rows: int, word: str) -> Iterator[dict[str, Any]]:
    yield from records(num_rows, word)


class TorchRows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, num_rows: int, word: str) -> None:
        self.num_rows, self.word = num_rows, word

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return record(index, self.word)


class TorchStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream that knows its length: torch lets it inherit a `__getitem__` that only raises."""

    def __init__(self, num_rows: int, word: str) -> None:
        self.num_rows, self.word = num_rows, word

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return generate(self.num_rows, self.word)


class Repeatable:
    def __init__(self, num_rows: int, word: str) -> None:
        self.num_rows, self.word = num_rows, word

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return generate(self.num_rows, self.word)


class FrozenRow(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class RowsContract(ABC):
    knows_length: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    has_identity: ClassVar[bool] = True
    # Which records come, in which order.
    order: ClassVar[list[int]] = list(range(NUM_ROWS))

    @abstractmethod
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        """Make the dataset anew, of records in the order of `order`."""

    def open(self, data: Any = None, **changes: Any) -> RowReader:
        arguments = {"media_col": "image_url", "txt_col": "caption", "max_samples": None, **changes}
        return open_rows(self.make() if data is None else data, **arguments)

    def read(self, reader: RowReader) -> list[Row]:
        return [row for rows in reader.batches() for row in rows]

    def expected(self, number: int) -> tuple[int, str, tuple[str, ...]]:
        wanted = record(self.order[number])
        return number, wanted["image_url"], (wanted["caption"],)

    def test_rows_come_in_order_and_are_numbered_by_it(self) -> None:
        rows = self.read(self.open())
        assert [row.index for row in rows] == list(range(len(self.order)))
        assert [row.source and row.source.value for row in rows] == [self.expected(i)[1] for i in range(len(rows))]
        assert {row.error for row in rows} == {None}

    def test_captions_are_unaltered(self) -> None:
        rows = self.read(self.open())
        assert [row.captions for row in rows] == [self.expected(i)[2] for i in range(len(rows))]
        assert {type(caption) for row in rows for caption in row.captions} == {str}

    def test_batches_are_bounded(self) -> None:
        sizes = [len(rows) for rows in self.open().batches()]
        assert sum(sizes) == len(self.order)
        assert 0 < min(sizes) <= max(sizes) <= MAX_BATCH

    @pytest.mark.parametrize("max_samples", [1, 40, 10**9])
    def test_max_samples_takes_rows_from_the_front(self, max_samples: int) -> None:
        reader = self.open(max_samples=max_samples)
        rows = self.read(reader)
        kept = min(max_samples, len(self.order))
        assert [(row.index, row.source.value, row.captions) for row in rows if row.source] == [
            self.expected(i) for i in range(kept)
        ]
        assert reader.num_rows == (kept if self.knows_length else None)
        assert reader.max_rows == (kept if self.knows_length else max_samples)

    def test_the_length_is_known_or_said_to_be_unknown(self) -> None:
        reader = self.open()
        assert (reader.num_rows, reader.max_rows) == ((len(self.order),) * 2 if self.knows_length else (None, None))

    def test_taken_rows_are_those_of_the_batches(self) -> None:
        reader = self.open(max_samples=60)
        assert reader.random_access == self.random_access
        if not self.random_access:
            with pytest.raises(ConfigError, match="only in order"):
                reader.take([0])
            return
        rows = self.read(self.open())
        wanted = [3, 41, 0, 3, min(59, len(self.order) - 1)]
        assert reader.take(wanted) == [rows[i] for i in wanted]
        assert reader.take([]) == []

    def test_the_identity_is_the_same_for_the_same_rows(self) -> None:
        assert self.open().identity == self.open().identity
        assert (self.open().identity is not None) == self.has_identity

    def test_peeking_into_a_dataset_does_not_change_its_identity(self) -> None:
        data = self.make()
        first = next(iter(data))
        assert first is not None
        assert self.open(data).identity == self.open().identity

    def test_the_identity_is_another_for_other_rows(self) -> None:
        identities = [
            self.open().identity,
            self.open(max_samples=5).identity,
            self.open(media_col="thumbnail").identity,
            self.open(txt_col="title").identity,
            self.open(txt_col=title_of).identity,
            self.open(self.make(word="another ")).identity,
            self.open(self.make(num_rows=NUM_ROWS - 1)).identity,
        ]
        assert len(set(identities)) == (len(identities) if self.has_identity else 1)

    def test_the_identity_is_the_same_in_another_process(self, identities: dict[str, str | None]) -> None:
        assert identities[type(self).__name__] == self.open().identity

    def test_a_callable_that_raises_costs_its_row_alone(self) -> None:
        rows = self.read(self.open(txt_col=fail_at_odd_widths))
        for row in rows:
            if self.order[row.index] % 2:
                assert row.error is not None
                assert row.error.reason == "bad_row"
                assert f"row {row.index} " in str(row.error)
                assert "fail_at_odd_widths" in str(row.error)
                assert "ZeroDivisionError: odd" in str(row.error)
            else:
                assert (row.error, row.captions) == (None, ("even",))

    def test_a_missing_column_is_named_with_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"'captoin'.*'image_url', .*'caption', .*did you mean 'caption'\?"):
            self.open(txt_col="captoin")


def title_of(row: Mapping[str, Any]) -> str:
    return f"the {row['title']}"


def fail_at_odd_widths(row: Mapping[str, Any]) -> str:
    if row["width"] % 2:
        raise ZeroDivisionError("odd")
    return "even"


class TestDataset(RowsContract):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return datasets.Dataset.from_list(records(num_rows, word))


class TestSelectedDataset(RowsContract):
    order: ClassVar[list[int]] = [*range(NUM_ROWS - 1, 0, -2), *range(0, NUM_ROWS, 2)]

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        picked = [i for i in self.order if i < num_rows]
        return datasets.Dataset.from_list(records(num_rows, word)).select(picked)


class TestShuffledDataset(RowsContract):
    order: ClassVar[list[int]] = datasets.Dataset.from_list(records()).shuffle(seed=7)["width"][:]

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return datasets.Dataset.from_list(records(num_rows, word)).shuffle(seed=7)


class TestFilteredDataset(RowsContract):
    order: ClassVar[list[int]] = [i for i in range(NUM_ROWS) if i % 10]

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        data = datasets.Dataset.from_list(records(num_rows, word))
        return data.filter(lambda row: row["width"] % 10 > 0, keep_in_memory=True)


class TestDatasetFormattedForTorch(TestDataset):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).with_format("torch")


class TestDatasetFormattedForNumpy(TestDataset):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).with_format("numpy", columns=["caption"])


def as_it_is(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return batch


class TestDatasetWithATransform(TestDataset):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).with_transform(as_it_is)


class TestStreamOfADataset(RowsContract):
    knows_length = False
    random_access = False

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return datasets.Dataset.from_list(records(num_rows, word)).to_iterable_dataset(num_shards=3)


class TestStreamFormattedForArrow(TestStreamOfADataset):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).with_format("arrow")


class TestStreamFormattedForTorch(TestStreamOfADataset):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).with_format("torch")


class TestShuffledStream(TestStreamOfADataset):
    order: ClassVar[list[int]] = [
        row["width"]
        for row in datasets.Dataset.from_list(records())
        .to_iterable_dataset(num_shards=3)
        .shuffle(seed=7, buffer_size=20)
    ]

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return super().make(num_rows, word).shuffle(seed=7, buffer_size=20)


class TestStreamOfAGenerator(TestStreamOfADataset):
    """A stream that declares no columns."""

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return datasets.IterableDataset.from_generator(generate, gen_kwargs={"num_rows": num_rows, "word": word})


class TestListOfDicts(RowsContract):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return records(num_rows, word)


class TestTupleOfMappings(RowsContract):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return tuple(FrozenRow(values) for values in records(num_rows, word))


class TestTorchDataset(RowsContract):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return TorchRows(num_rows, word)


class TestTorchStream(RowsContract):
    knows_length = False
    random_access = False
    has_identity = False

    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return TorchStream(num_rows, word)


class TestGenerator(TestTorchStream):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return generate(num_rows, word)


class TestRepeatableIterable(TestTorchStream):
    def make(self, num_rows: int = NUM_ROWS, word: str = "") -> Any:
        return Repeatable(num_rows, word)

    def test_it_can_be_read_again(self) -> None:
        reader = self.open()
        assert self.read(reader) == self.read(reader)


def implementations(contract: type[RowsContract] = RowsContract) -> set[type[RowsContract]]:
    below = set(contract.__subclasses__())
    return below.union(*map(implementations, below))


def identities_here() -> dict[str, str | None]:
    return {each.__name__: each().open().identity for each in implementations()}


@pytest.fixture(scope="module")
def identities() -> dict[str, str | None]:
    """Digest every dataset of this module in a process of its own, which orders its sets in another way."""
    here = Path(__file__)
    code = "import json, test_rows_contract as rows; print(json.dumps(rows.identities_here()))"
    paths = [str(here.parents[2]), str(here.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found
