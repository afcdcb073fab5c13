"""Readers: the user's dataset, whatever it is, as batches of rows in order."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from in_memory_datasets.errors import ConfigError, SampleError
from in_memory_datasets.rows.captions import captions_from_value
from in_memory_datasets.rows.columns import Column, ColumnSpec, find_column
from in_memory_datasets.rows.sources import source_from_value
from in_memory_datasets.schema import Row

# Rows read at once: many where they hold addresses, few where they hold the media themselves.
_NUM_LIGHT_ROWS, _NUM_HEAVY_ROWS = 1000, 32


def open_rows(data: Any, *, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> RowReader:
    """Recognise the user's dataset and find its columns; at most one row is read.

    Args:
        data: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        media_col: The column of sources.
        txt_col: The column of captions.
        max_samples: Rows to take from the front; None takes all.

    Raises:
        ConfigError: It is none of these, or a column is missing.

    Example:
        >>> reader = open_rows([{"url": "a.jpg", "text": "a cat"}], media_col="url", txt_col="text", max_samples=None)
        >>> [(row.index, row.source.value, row.captions) for rows in reader.batches() for row in rows]
        [(0, 'a.jpg', ('a cat',))]
    """
    if max_samples is not None and (
        isinstance(max_samples, bool) or not isinstance(max_samples, int) or max_samples < 1
    ):
        raise ConfigError(f"max_samples={max_samples!r}: expected a whole number of at least 1, or None for all")
    # Whoever passes a Dataset has imported its library; whoever does not need not pay for importing it.
    library = sys.modules.get("datasets")
    if library is not None:
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
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return SequenceReader(data, media_col, txt_col, max_samples)
    return IterableReader(data, media_col, txt_col, max_samples)


class RowReader(ABC):
    """Rows in order, in batches of bounded size.

    Attributes:
        num_rows: How many there are; None where that is not known beforehand.
        max_rows: The most there can be; None where that is not known either.
        random_access: Whether `take` works.
        identity: A digest of which rows these are, the same in another process; None where there is none.
    """

    num_rows: int | None
    max_rows: int | None
    random_access: bool
    _media: Column
    _captions: Column

    @property
    @abstractmethod
    def identity(self) -> str | None:
        """Digest which rows, which columns and which selection this is."""

    @abstractmethod
    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order, a batch at a time."""

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number.

        Raises:
            ConfigError: Rows can only be read in order.
        """
        raise ConfigError(f"a {type(self).__name__} reads rows only in order")

    def _find_columns(self, media_col: ColumnSpec, txt_col: ColumnSpec, names: Iterable[str]) -> None:
        names = list(names)
        self._media = find_column(media_col, names, kind="media")
        self._captions = find_column(txt_col, names, kind="captions")

    @property
    def _roots(self) -> list[str] | None:
        """Name the dataset's own columns that are needed; None for all of them."""
        if self._media.roots is None or self._captions.roots is None:
            return None
        return list(dict.fromkeys((*self._media.roots, *self._captions.roots)))

    def _make_row(self, index: int, record: Any) -> Row:
        if not isinstance(record, Mapping):
            return _unusable(index, f"it is a {type(record).__name__}, expected a mapping")
        try:
            captions = captions_from_value(self._captions.value_in(record))
        except Exception as error:  # noqa: BLE001 - the user's callable may raise anything
            return _unusable(index, f"its captions ({self._captions.name}): {type(error).__name__}: {error}")
        try:
            source = source_from_value(self._media.value_in(record))
        except SampleError as error:
            return Row(index, None, captions, error)
        except Exception as error:  # noqa: BLE001 - likewise
            return _unusable(index, f"its media ({self._media.name}): {type(error).__name__}: {error}", captions)
        if source is None:
            nothing = SampleError(f"row {index} has nothing in {self._media.name!r}", reason="empty")
            return Row(index, None, captions, nothing)
        return Row(index, source, captions)


def _unusable(index: int, what: str, captions: tuple[str, ...] = ()) -> Row:
    return Row(index, None, captions, SampleError(f"row {index} is unusable: {what}", reason="bad_row"))


class DatasetReader(RowReader):
    """Rows of a `datasets.Dataset`, read as Arrow batches of the needed columns; nothing is decoded."""

    random_access = True

    def __init__(self, dataset: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        self._find_columns(media_col, txt_col, dataset.column_names)
        schema = dataset.features.arrow_schema
        if self._captions.roots is not None and not self._captions.path:
            for root in self._captions.roots:
                kind = schema.field(root).type
                if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                    raise ConfigError(f"column {root!r} holds {kind}, not captions: pass another one, or a callable")
        if max_samples is not None and max_samples < len(dataset):
            dataset = dataset.select(range(max_samples))
        self._fingerprint = dataset._fingerprint
        # The Arrow format hands out what is stored: {"bytes", "path"} of media, whatever their `decode` says.
        self._dataset = (dataset if self._roots is None else dataset.select_columns(self._roots)).with_format("arrow")
        self.num_rows = self.max_rows = len(dataset)
        kinds = [schema.field(root).type for root in self._media.roots or ()]
        light = bool(kinds) and all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)
        self._batch_size = _NUM_LIGHT_ROWS if light else _NUM_HEAVY_ROWS

    @cached_property
    def identity(self) -> str:
        """Digest the dataset's own fingerprint and the columns."""
        columns = [_digest_of_column(column) for column in (self._media, self._captions)]
        return hashlib.sha256(json.dumps([self._fingerprint, self.num_rows, *columns]).encode()).hexdigest()

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order, an Arrow batch at a time."""
        index = itertools.count()
        for table in self._dataset.iter(batch_size=self._batch_size):
            yield [self._make_row(next(index), record) for record in table.to_pylist()]

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number."""
        if not len(indices):
            return []
        records = self._dataset[list(indices)].to_pylist()
        return [self._make_row(index, record) for index, record in zip(indices, records, strict=True)]


class StreamReader(RowReader):
    """Rows of a `datasets.IterableDataset`, undecoded."""

    random_access = False
    num_rows = None

    def __init__(self, dataset: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        names = dataset.column_names
        if names is None:  # not declared: the first row tells
            names = list(next(iter(dataset.take(1)), {}))
        self._find_columns(media_col, txt_col, names)
        self._original = dataset
        for name, feature in (dataset.features or {}).items():
            if getattr(feature, "decode", False):
                undecoded = copy.copy(feature)
                undecoded.decode = False
                dataset = dataset.cast_column(name, undecoded)
        if self._roots is not None:
            dataset = dataset.select_columns(self._roots)
        self._dataset = dataset if max_samples is None else dataset.take(max_samples)
        self.max_rows = max_samples

    @cached_property
    def identity(self) -> str:
        """Digest how the stream is made: its files and what is done to them."""
        from datasets.fingerprint import Hasher

        columns = [_digest_of_column(column) for column in (self._media, self._captions)]
        made = Hasher.hash((self._original._ex_iterable, str(self._original.split), self.max_rows, columns))
        return str(made)

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order."""
        return _in_batches(self._make_row(index, record) for index, record in enumerate(self._dataset))


class SequenceReader(RowReader):
    """Rows of anything with a length whose items are mappings."""

    random_access = True

    def __init__(self, data: Any, media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None) -> None:
        self._data = data
        self.num_rows = self.max_rows = len(data) if max_samples is None else min(len(data), max_samples)
        self._find_columns(media_col, txt_col, _names_of(data[0]) if self.num_rows else _any_names(media_col, txt_col))

    @cached_property
    def identity(self) -> str:
        """Digest the values of the needed columns. Cost: one pass over all of them."""
        digest = xxhash.xxh3_128()
        for i in range(self.max_rows or 0):
            row = self._make_row(i, self._data[i])
            _feed(digest, [row.captions, str(row.error or "")])
            _feed(digest, [row.source.kind, row.source.value] if row.source else None)
        return str(digest.hexdigest())

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order."""
        return _in_batches(self._make_row(i, self._data[i]) for i in range(self.max_rows or 0))

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Give some rows by number."""
        return [self._make_row(index, self._data[index]) for index in indices]


class IterableReader(RowReader):
    """Rows of any iterable of mappings; of an iterator, once."""

    random_access = False
    num_rows = None
    identity = None

    def __init__(
        self, data: Iterable[Any], media_col: ColumnSpec, txt_col: ColumnSpec, max_samples: int | None
    ) -> None:
        rows = iter(data)
        first = list(itertools.islice(rows, 1))
        self._find_columns(media_col, txt_col, _names_of(first[0]) if first else _any_names(media_col, txt_col))
        # What is read off an iterator is gone: the first row goes back in front. Other iterables begin anew.
        self._data = itertools.chain(first, rows) if rows is data else data
        self.max_rows = max_samples

    def batches(self) -> Iterator[list[Row]]:
        """Give all rows in order."""
        rows = itertools.islice(self._data, self.max_rows)
        return _in_batches(self._make_row(index, record) for index, record in enumerate(rows))


def _in_batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(rows, _NUM_HEAVY_ROWS)):
        yield batch


def _names_of(record: Any) -> list[str]:
    if not isinstance(record, Mapping):
        raise ConfigError(f"its rows are of type {type(record).__name__}: expected mappings of column names to values")
    return [str(name) for name in record]


def _any_names(*specs: ColumnSpec) -> list[str]:
    """Pretend that a dataset without rows has the columns asked for: that it is empty is the better message."""
    return [spec for spec in specs if isinstance(spec, str)]


def _digest_of_column(column: Column) -> list[Any]:
    if column.function is None:
        return [column.roots, column.path]
    from datasets.fingerprint import Hasher

    return [Hasher.hash(column.function)]


def _feed(digest: Any, value: Any) -> None:
    """Feed a value into a digest, with its type and length, so that no two values look alike."""
    if isinstance(value, Mapping):
        _feed(digest, [item for pair in value.items() for item in pair])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__}{len(data)}:".encode())
        digest.update(data)
    elif value is None or isinstance(value, (bool, int, float)):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        digest.update(f"{array.dtype}{array.shape}:".encode())
        digest.update(array.tobytes())
    else:
        from datasets.fingerprint import Hasher

        digest.update(Hasher.hash(value).encode())
