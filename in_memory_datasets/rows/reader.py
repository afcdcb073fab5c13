"""Readers: the user's dataset, whatever it is, as batches of rows in order."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import xxhash

from in_memory_datasets.errors import ConfigError, SampleError
from in_memory_datasets.rows.captions import captions_from_value
from in_memory_datasets.rows.columns import Column, ColumnSpec, check_types, find_column
from in_memory_datasets.rows.digests import IndigestibleError, digest_of_column, feed, hash_of, made_of
from in_memory_datasets.rows.messages import describe
from in_memory_datasets.rows.sources import source_from_value
from in_memory_datasets.rows.streams import as_stored, told
from in_memory_datasets.schema import Row

# Rows read at once: many where they hold addresses, few where they hold the media themselves.
_NUM_LIGHT_ROWS, _NUM_HEAVY_ROWS = 1000, 32
# And how many times as many are handed on at once.
_HANDED_ON = 8


MaxSamples = int | Literal["auto"] | None


def open_rows(data: Any, *, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: MaxSamples) -> RowReader:
    """Recognise the user's dataset and find its columns; at most one row is read.

    Args:
        data: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        media_col: The column of sources.
        txt_col: The column of captions.
        max_samples: Rows to take from the front; None takes all, "auto" as many as there turns out to be memory for.

    Raises:
        ConfigError: It is none of these, or a column is missing.

    Example:
        >>> reader = open_rows([{"url": "a.jpg", "text": "a cat"}], media_col="url", txt_col="text", max_samples=None)
        >>> [(row.index, row.source.value, row.captions) for rows in reader.batches() for row in rows]
        [(0, 'a.jpg', ('a cat',))]
    """
    if isinstance(max_samples, str) and max_samples == "auto":
        reader = open_rows(data, media_col=media_col, txt_col=txt_col, max_samples=None)
        reader.takes_what_fits = True
        return reader
    max_samples = _check_max_samples(max_samples)
    # Whoever passes a Dataset has imported its library; whoever does not need not pay for importing it.
    library = sys.modules.get("datasets")
    if library is not None and hasattr(library, "IterableDatasetDict"):  # and not the user's own module of that name
        if isinstance(data, (library.DatasetDict, library.IterableDatasetDict)):
            raise ConfigError(f"this is a dictionary of splits: choose one of {', '.join(map(repr, data))}")
        if isinstance(data, library.Dataset) and data.format["type"] != "custom":
            return DatasetReader(data, media_col, txt_col, max_samples)
        if isinstance(data, library.IterableDataset):
            return StreamReader(data, media_col, txt_col, max_samples)
    if isinstance(data, (str, bytes, Mapping)) or (not isinstance(data, Iterable) and not hasattr(data, "__getitem__")):
        raise ConfigError(
            f"a {type(data).__name__} is no dataset: pass a datasets.Dataset or a sequence or iterable of mappings"
        )
    if type(data).__module__.partition(".")[0] in _FRAMES:
        library_name = type(data).__module__.partition(".")[0]
        raise ConfigError(f"a {type(data).__name__} of {library_name} is no dataset: pass {_FRAMES[library_name]}")
    # torch gives its IterableDataset a __getitem__ that only raises.
    only_iterates = any(base.__name__ == "IterableDataset" for base in type(data).__mro__)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not only_iterates:
        return SequenceReader(data, media_col, txt_col, max_samples)
    return IterableReader(data, media_col, txt_col, max_samples)


# Tables of other libraries, and the Dataset each can be made into.
_FRAMES = {
    "pandas": "datasets.Dataset.from_pandas(frame)",
    "polars": "datasets.Dataset.from_polars(frame)",
    "pyarrow": "datasets.Dataset(table)",
}


def _check_max_samples(max_samples: Any) -> int | None:
    if max_samples is None:
        return None
    try:
        number = 0 if isinstance(max_samples, bool) else operator.index(max_samples)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"max_samples={max_samples!r}: expected a whole number of at least 1, None for all or 'auto'")
    return number


class RowReader(ABC):
    """Rows in order, in batches of bounded size.

    Attributes:
        num_rows: How many there are; None where that is not known beforehand.
        max_rows: The most there can be; None where that is not known either.
        random_access: Whether `take` works.
        takes_what_fits: Whether only as many are wanted, from the front, as there is memory for.
        reads_once: Whether what was read is gone.
        identity: A digest of which rows these are, the same in another process; None where there is none.
        first_row: The number of the first one in the user's dataset, of which these may be a part; for messages.
        columns: How the user named the columns of media and of captions.
    """

    num_rows: int | None
    max_rows: int | None
    random_access: bool
    takes_what_fits: bool = False
    reads_once: bool = False
    first_row: int = 0
    columns: tuple[ColumnSpec, ColumnSpec]
    _media: Column
    _captions: Column

    @cached_property
    def identity(self) -> str | None:
        """Digest which rows, which columns and which selection this is; None where that cannot be told.

        Where the memory decides how many there are, it is not how many that turned out to be.
        """
        try:
            columns = [digest_of_column(column) for column in (self._media, self._captions)]
            return self._digest([*columns, "auto"] if self.takes_what_fits else columns)
        except IndigestibleError:
            return None

    @abstractmethod
    def _digest(self, columns: list[Any]) -> str | None:
        """Digest the rows, together with what `columns` tells of the columns."""

    @abstractmethod
    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order, a batch at a time."""

    @abstractmethod
    def records(self) -> Iterator[Any]:
        """Give all records in order as they are stored, to be handed on: Arrow tables, or lists of mappings.

        Of their columns only those that are needed, where that can be told.
        """

    def _cut(self, record: Any) -> Any:
        if self._roots is None or not isinstance(record, Mapping):
            return record
        return {name: record[name] for name in self._roots if name in record}

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number.

        Raises:
            ConfigError: Rows can only be read in order.
        """
        raise ConfigError(f"a {type(self).__name__} reads rows only in order")

    def _find_columns(self, media_col: ColumnSpec, txt_col: ColumnSpec, names: Iterable[str]) -> None:
        names = list(names)
        self.columns = media_col, txt_col
        self._media = find_column(media_col, names, kind="media")
        self._captions = find_column(txt_col, names, kind="captions")

    @property
    def _roots(self) -> list[str] | None:
        """Name the dataset's own columns that are needed; None for all of them."""
        if self._media.roots is None or self._captions.roots is None:
            return None
        return list(dict.fromkeys((*self._media.roots, *self._captions.roots)))

    def _make_row(self, index: int, record: Any) -> Row:
        if isinstance(record, _UnreadableRecord):
            return self._unusable(index, describe("reading it", record.error))
        if not isinstance(record, Mapping):
            return self._unusable(index, f"it is a {type(record).__name__}, expected a mapping")
        try:
            captions = captions_from_value(self._captions.value_in(record))
        except Exception as error:  # noqa: BLE001 - the user's callable may raise anything
            return self._unusable(index, describe(f"its captions ({self._captions.name})", error))
        try:
            source = source_from_value(self._media.value_in(record))
        except SampleError as error:
            return Row(index, None, captions, error)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._unusable(index, describe(f"its media ({self._media.name})", error), captions)
        if source is None:
            which = self.first_row + index
            nothing = SampleError(f"row {which} has nothing in {self._media.name!r}", reason="empty")
            return Row(index, None, captions, nothing)
        return Row(index, source, captions)

    def _unusable(self, index: int, what: str, captions: tuple[str, ...] = ()) -> Row:
        which = self.first_row + index
        return Row(index, None, captions, SampleError(f"row {which} is unusable: {what}", reason="bad_row"))


class DatasetReader(RowReader):
    """Rows of a `datasets.Dataset`, read as Arrow batches of the needed columns; nothing is decoded."""

    random_access = True

    def __init__(self, dataset: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        self._find_columns(media_col, txt_col, dataset.column_names)
        schema = dataset.features.arrow_schema
        for column in (self._media, self._captions):
            check_types(column, schema)
        if max_samples is not None and max_samples < len(dataset):
            dataset = dataset.select(range(max_samples))
        self._dataset = dataset
        self.num_rows = self.max_rows = len(dataset)
        kinds = [schema.field(root).type for root in self._media.roots or ()]
        light = bool(kinds) and all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)
        self._batch_size = _NUM_LIGHT_ROWS if light else _NUM_HEAVY_ROWS

    def _digest(self, columns: list[Any]) -> str:
        return hashlib.sha256(json.dumps([self._dataset._fingerprint, self.num_rows, *columns]).encode()).hexdigest()

    @cached_property
    def _stored(self) -> Any:
        """The needed columns as they are stored: {"bytes", "path"} of media, whatever their `decode` says.

        Who attaches to a cached store reads no row, and making this takes longer than all else of that.
        """
        dataset = self._dataset if self._roots is None else self._dataset.select_columns(self._roots)
        return dataset.with_format("arrow")

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order, an Arrow batch at a time."""
        index = itertools.count()
        media, captions = self._media.plain_root, self._captions.plain_root
        for table in self._stored.iter(batch_size=self._batch_size):
            if media is None or captions is None:
                yield [self._make_row(next(index), record) for record in table.to_pylist()]
            else:  # most of the time would go into making mappings and following paths
                values = zip(table[media].to_pylist(), table[captions].to_pylist(), index, strict=False)
                yield [self._make_plain_row(*each) for each in values]

    def _make_plain_row(self, media: Any, captions: Any, index: int) -> Row:
        try:
            source, texts = source_from_value(media), captions_from_value(captions)
        except Exception:  # noqa: BLE001 - said in full below
            source, texts = None, ()
        if source is None:
            return self._make_row(index, {str(self._media.plain_root): media, str(self._captions.plain_root): captions})
        return Row(index, source, texts)

    def records(self) -> Iterator[Any]:
        """Give all records in order, as Arrow tables."""
        yield from self._stored.iter(batch_size=_HANDED_ON * self._batch_size)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number."""
        if not len(indices):
            return []
        records = self._stored[list(indices)].to_pylist()
        return [self._make_row(index, record) for index, record in zip(indices, records, strict=True)]


class StreamReader(RowReader):
    """Rows of a `datasets.IterableDataset`, undecoded."""

    random_access = False
    num_rows = None

    def __init__(self, dataset: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        self._original = dataset
        names, features = dataset.column_names, dataset.features
        dataset, self._place = as_stored(dataset)
        if names is None:  # not declared: the first row tells
            first = next(told(dataset.take(1), self._place), None)
            names = _any_names(media_col, txt_col) if first is None else list(first)
        self._find_columns(media_col, txt_col, names)
        if features is not None:
            for column in (self._media, self._captions):
                check_types(column, features.arrow_schema)
        if self._roots is not None:
            dataset = dataset.select_columns(self._roots)
        self._dataset = dataset
        self._dataset.set_epoch(self._original.epoch)  # which every method of a stream forgets
        self.max_rows = max_samples

    def _digest(self, columns: list[Any]) -> str:
        # How the stream is made (its files and what is done to them), and which part of it comes.
        stream = self._original
        part = [getattr(stream, name, None) for name in ("epoch", "_shuffling", "_distributed")]
        return hash_of([made_of(stream._ex_iterable), part, str(stream.split), self.max_rows, columns])

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order.

        Raises:
            LoadError: The stream broke off.
        """
        return _in_batches(self._make_row(index, record) for index, record in enumerate(self._each()))

    def records(self) -> Iterator[Any]:
        """Give all records in order, as lists."""
        return _in_batches((self._cut(record) for record in self._each()), _HANDED_ON * _NUM_HEAVY_ROWS)

    def _each(self) -> Iterator[Any]:
        # Not the stream's own `take`, which reads one row more and meets what is wrong with it.
        return itertools.islice(told(self._dataset, self._place), self.max_rows)


class SequenceReader(RowReader):
    """Rows of anything with a length whose items are mappings."""

    random_access = True

    def __init__(self, data: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        self._data = data
        self.num_rows = self.max_rows = len(data) if max_samples is None else min(len(data), max_samples)
        names = _names_of(self._record(0)) if self.num_rows else _any_names(media_col, txt_col)
        self._find_columns(media_col, txt_col, names)

    def _record(self, index: int) -> Any:
        try:
            return self._data[index]
        except Exception as error:  # noqa: BLE001 - the user's sequence may raise anything
            return _UnreadableRecord(error)

    def _digest(self, columns: list[Any]) -> str:
        # The values of the needed columns say it all: one pass over them.
        digest = xxhash.xxh3_128()
        for i in range(self.max_rows or 0):
            row = self._make_row(i, self._record(i))
            feed(digest, [row.captions, str(row.error or "")])
            feed(digest, [row.source.kind, row.source.value] if row.source else None)
        if self.takes_what_fits:
            feed(digest, "auto")
        return str(digest.hexdigest())

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order."""
        return _in_batches(self._make_row(i, self._record(i)) for i in range(self.max_rows or 0))

    def records(self) -> Iterator[Any]:
        """Give all records in order, as lists."""
        records = (self._cut(self._record(i)) for i in range(self.max_rows or 0))
        return _in_batches(records, _HANDED_ON * _NUM_HEAVY_ROWS)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number."""
        return [self._make_row(index, self._record(index)) for index in indices]


class IterableReader(RowReader):
    """Rows of any iterable of mappings; of an iterator, once."""

    random_access = False
    num_rows = None

    def __init__(
        self, data: Iterable[Any], media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None
    ) -> None:
        rows = iter(data)
        first = list(itertools.islice(rows, 1))
        self._find_columns(media_col, txt_col, _names_of(first[0]) if first else _any_names(media_col, txt_col))
        # What is read off an iterator is gone: the first row goes back in front. Other iterables begin anew.
        self.reads_once = rows is data
        self._data = itertools.chain(first, rows) if rows is data else data
        self.max_rows = max_samples

    def _digest(self, columns: list[Any]) -> None:
        # What an iterable will give is not known before it has.
        return None

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order."""
        return _in_batches(self._make_row(index, record) for index, record in enumerate(self._each()))

    def records(self) -> Iterator[Any]:
        """Give all records in order, as lists."""
        return _in_batches((self._cut(record) for record in self._each()), _HANDED_ON * _NUM_HEAVY_ROWS)

    def _each(self) -> Iterator[Any]:
        return itertools.islice(self._data, self.max_rows)


class _UnreadableRecord:
    """What stands for a record that its sequence would not give."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _in_batches(rows: Iterator[Any], num_rows: int = _NUM_HEAVY_ROWS) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(rows, num_rows)):
        yield batch


def _names_of(record: Any) -> list[str]:
    if isinstance(record, _UnreadableRecord):
        what = "row 0 cannot be read, so its columns are not known"
        raise ConfigError(describe(what, record.error)) from record.error
    if not isinstance(record, Mapping):
        raise ConfigError(f"its rows are of type {type(record).__name__}: expected mappings of column names to values")
    return [str(name) for name in record]


def _any_names(*specs: ColumnSpec) -> list[str]:
    """Pretend that a dataset without rows has the columns asked for: that it is empty is the better message."""
    return [spec for spec in specs if isinstance(spec, str)]
