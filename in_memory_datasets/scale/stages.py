"""Samples decoded inside a pipeline of Ray Data: rows in, rows with what this library makes of them out.

A task takes a block of rows, and fetches and decodes all of it with one set of connections and threads. Rows come out
in pieces, in order, while the next pieces are under way: one that waits for its last, slow source keeps neither the
connections nor the cores idle. Of 4,096 addresses of which one in a hundred took two seconds, pieces of 256 one after
the other took 37 s, and like this 8.5 s (measured, two cores).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from in_memory_datasets.build import LoadRequest
from in_memory_datasets.build.duplicates import SampleNumbers, first_rows
from in_memory_datasets.build.mixture import max_sample_bytes
from in_memory_datasets.build.pipeline import Outcome, Threads
from in_memory_datasets.decode import share_decode_memory
from in_memory_datasets.errors import ConfigError, LoadError
from in_memory_datasets.rows import ColumnSpec, open_rows
from in_memory_datasets.rows.columns import Column, check_types, find_column
from in_memory_datasets.schema import AudioSpec, FetchOptions, ImageSpec, Row
from in_memory_datasets.store import Placed

if TYPE_CHECKING:
    from ray.data import Dataset

# What a node fetches with the default options, a few hundred pictures a second, so many workers of a core decode.
_WORKERS_OF_NODE = 4
# What a worker has under way: so many bytes of decoded samples, in so many pieces.
_WINDOW_BYTES, _FEWEST_PIECES, _MOST_PIECES = 256 * 2**20, 2, 16
_BUFFERED_BYTES, _LEAST_BUFFERED_BYTES = 128 * 2**20, 16 * 2**20

# Arguments of the classes that mean nothing here, and what to do instead.
_INSTEAD = {
    "max_samples": "take dataset.limit(n) before the stage",
    "captions": "the column of all captions is kept: choose among them in a map() after the stage",
    "output": "rows hold arrays, of which iter_torch_batches() makes tensors",
    "transform": "call it in a map() after the stage",
    "batch_transform": "call it in a map_batches() after the stage",
    "pad_to": "pad in the collate_fn of iter_torch_batches()",
    "crop": "a clip is decoded once: cut a part of it in a map() after the stage",
    "keep_duration": "max_duration is all that is kept",
    "cache_dir": "keep what the stage made with write_parquet() or materialize()",
    "storage": "rows hold decoded samples; the encoded ones are what goes in",
    "recompress": "rows hold decoded samples; the encoded ones are what goes in",
    "memory_limit": "a worker holds a few times batch_size samples: give fewer",
    "lock_memory": "rows lie in Ray's object store, which is Ray's to place",
    "progress": "Ray draws its own, see ray.data.DataContext.enable_progress_bars",
    "wait": "a pipeline runs when its rows are asked for",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """All that a worker is told.

    Attributes:
        request: What a load is told, without rows; its requests under way are those of one worker.
        columns: How the user named the columns of media and of captions.
        batch_size: Rows of a piece.
        placeholder: What stands for a sample that failed: a level of grey, or a clip of silence.
        workers_of_node: How many workers a node has at the same time.
    """

    request: LoadRequest
    columns: tuple[ColumnSpec, ColumnSpec]
    batch_size: int
    placeholder: int | NDArray[Any]
    workers_of_node: int

    @property
    def added(self) -> tuple[str, ...]:
        """Name the columns that rows come out with."""
        is_image = isinstance(self.request.spec, ImageSpec)
        media = ("image",) if is_image else ("audio", "sampling_rate")
        return (*media, "caption", "valid", "reason")

    @property
    def num_pieces(self) -> int:
        """Count the pieces that are under way at the same time."""
        fitting = _WINDOW_BYTES // (self.batch_size * max_sample_bytes(self.request.spec))
        return min(max(fitting, _FEWEST_PIECES), _MOST_PIECES)

    def find_columns(self, names: Sequence[str]) -> tuple[Column, Column]:
        """Find the columns of media and of captions.

        Raises:
            ConfigError: One is missing, or a column would be lost under the name of one that is added.
        """
        found = find_column(self.columns[0], names, kind="media"), find_column(self.columns[1], names, kind="captions")
        may_be_replaced = {self.added[0]: found[0].roots or (), "caption": found[1].roots or ()}
        for name in self.added:
            if name in names and name not in may_be_replaced.get(name, ()):
                raise ConfigError(
                    f"the rows have a column {name!r} already, and the stage adds one: rename it before, with "
                    f'dataset.rename_columns({{{name!r}: "another name"}})'
                )
        return found


def decode_into_rows(
    dataset: Dataset,
    cls: type,
    *args: Any,
    batch_size: int = 256,
    concurrency: int | None = None,
    num_cpus: float = 1.0,
    **kwargs: Any,
) -> Dataset:
    """Add a stage to a pipeline of Ray Data that fetches and decodes each row's picture or clip.

    Rows come out with all the columns they had, and with these; one of the same name is replaced if it is the column
    that was read for it, and refused else:

        image           uint8 (H, W, 3), of pictures
        audio           float32 (num_frames,) in [-1, 1], or int16 with `dtype="int16"`; of clips
        sampling_rate   int64, Hz; of clips
        caption         str, the row's first; "" for a row without one
        valid           bool
        reason          str, such as "http_404"; "" of a valid row

    A failure is data: a row that failed is not `valid`, its picture is grey, its clip a second of silence. With
    `on_error="skip"` the row is left out instead, and with "raise" it ends the pipeline.

    Args:
        dataset: Any dataset of Ray Data; nothing of it is read yet.
        cls: `InMemoryImageTextDataset` or `InMemoryAudioTextDataset`.
        args: Arguments of the class, without its rows, that tell how samples are found, fetched and decoded.
        batch_size: Rows of a piece. A worker decodes some pieces at a time, of 256 MiB together or two of them.
        concurrency: The most workers at the same time; None takes four for each node there is now. More are of use
            where decoding is what takes the time, or with more requests under way.
        num_cpus: Cores that Ray counts for a worker, and decode threads it has unless `num_threads` is given. Above
            four, more workers decode more than more threads.
        kwargs: As `args`. `fetch` is what the workers of one node do together, each its share.

    Raises:
        ConfigError: An argument cannot work, or is not for a stage, or a column is missing: at once, or in the first
            block where Ray does not know the columns before it runs what comes before.
        LoadError: While it runs: a row failed, and `on_error` is "raise".

    A worker takes a block at a time, in which a source is fetched once a piece, however many rows name it; paths are
    those of the worker's node. Few, large blocks leave workers without work, and many small ones have them wait for
    the last source of each: `dataset.repartition(target_num_rows_per_block=4096)` makes others. For rows in their
    order, set `dataset.context.execution_options.preserve_order`.

    Cost: one fetch and decode per source; the pixels or frames are written once, and copied once into Ray's object
    store. To start is 10 ms a block, and a second or two for a worker's first, which imports what it needs.

    Example:
        ```python
        rows = ray.data.from_items([{"image_url": f"{url}/{i}.png", "caption": f"number {i}"} for i in range(4)])
        decoded = decode_into_rows(rows, InMemoryImageTextDataset, image_size=(32, 32), fetch=fetch)
        for batch in decoded.iter_batches(batch_size=2):
            assert batch["image"].shape == (2, 32, 32, 3)
            assert batch["valid"].all()
        ```
    """
    import ray.data  # a second, which nobody else here needs

    if not isinstance(dataset, ray.data.Dataset):
        raise ConfigError(f"a {type(dataset).__name__} is no ray.data.Dataset: ray.data.from_items(rows) makes one")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
    if concurrency is not None and (
        isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1
    ):
        raise ConfigError(
            f"concurrency={concurrency!r}: expected a whole number of at least 1, or None for four a node"
        )
    if isinstance(num_cpus, bool) or not isinstance(num_cpus, (int, float)) or not 0 < num_cpus < float("inf"):
        raise ConfigError(f"num_cpus={num_cpus!r}: expected a number above 0, of cores")
    schema = dataset.schema(fetch_if_missing=False)
    request, placeholder = _describe(cls, [] if schema is None else [dict.fromkeys(schema.names)], args, kwargs)
    most, workers_of_node = _count_workers(concurrency, num_cpus)
    stage = Stage(
        request=replace(
            request,
            reader=None,
            job=None,
            progress=False,
            fetch=_share(request.fetch, workers_of_node),
            num_threads=request.num_threads or max(1, int(num_cpus)),
        ),
        columns=request.rows.columns,
        batch_size=batch_size,
        placeholder=placeholder,
        workers_of_node=workers_of_node,
    )
    if schema is not None:
        for column in stage.find_columns(schema.names):
            if isinstance(schema.base_schema, pa.Schema):
                check_types(column, schema.base_schema)
    # Whole blocks, which are cut into pieces there; a function, which has no state that would need actors.
    return dataset.map_batches(
        decode_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"stage": stage},
        compute=ray.data.TaskPoolStrategy(size=most),
        num_cpus=num_cpus,
        udf_modifying_row_count=request.on_error == "skip",
    )


def _describe(
    cls: Any, rows: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[LoadRequest, int | NDArray[Any]]:
    """Have the class understand its arguments; give what they ask for, and what it serves for a failed sample."""
    # The workers do without, and without torch unless pictures are to be resized.
    from in_memory_datasets.training.datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
    from in_memory_datasets.training.in_memory import DESCRIBED
    from in_memory_datasets.training.serving import PLACEHOLDER_GREY, ImageServing

    classes = InMemoryImageTextDataset, InMemoryAudioTextDataset
    if not (isinstance(cls, type) and issubclass(cls, classes)):
        raise ConfigError(f"{cls!r}: expected InMemoryImageTextDataset or InMemoryAudioTextDataset")
    signature = inspect.signature(cls)
    for name, value in signature.bind(rows, *args, **kwargs).arguments.items():
        default = signature.parameters[name].default
        if name in _INSTEAD and value is not default and value != default:
            raise ConfigError(f"{name}={value!r} is not for a stage of Ray Data: {_INSTEAD[name]}")
    described = cls(rows, *args, **{**kwargs, "wait": DESCRIBED})
    request, serving = described._request, described._serving
    if isinstance(serving, ImageServing):
        return request, PLACEHOLDER_GREY
    assert isinstance(request.spec, AudioSpec)
    return request, np.zeros(serving.placeholder_frames(request.spec), request.spec.dtype)


def _count_workers(concurrency: int | None, num_cpus: float) -> tuple[int, int]:
    """Give the most workers of the cluster, and how many of these one node has on average, rounded up."""
    cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    fitting = [int(each / num_cpus) for each in cores if each >= num_cpus] or [1]
    most = sum(min(each, _WORKERS_OF_NODE) for each in fitting) if concurrency is None else concurrency
    return most, -(-min(most, sum(fitting)) // len(fitting))


def _share(fetch: FetchOptions, num_workers: int) -> FetchOptions:
    return replace(
        fetch, concurrency=max(1, fetch.concurrency // num_workers), per_host=max(1, fetch.per_host // num_workers)
    )


class _Piece:
    """Some rows that come out together, while their samples arrive.

    Attributes:
        to_load: The rows whose samples are to be made; of those that name the same source the first.
        num_open: How many of these are under way.
    """

    def __init__(self, stage: Stage, table: pa.Table, first_row: int) -> None:
        self._stage, self._table, self._first_row = stage, table, first_row
        media, captions = stage.find_columns(table.column_names)
        self._rows = _read(table, media, captions, stage.columns)
        self._numbers = SampleNumbers().of(self._rows)
        firsts = first_rows(self._rows, self._numbers, 0)
        spec = stage.request.spec
        self._samples: Any  # by number
        if isinstance(spec, ImageSpec):
            self._samples = np.empty((len(firsts), spec.image_size[1], spec.image_size[0], 3), np.uint8)
        else:
            self._samples = [None] * len(firsts)
        self._reasons = [""] * len(firsts)
        self.to_load: list[Row] = []
        for row in firsts:
            if row.source is None:
                reason, detail = ("empty", "it has no media") if row.error is None else (row.error.reason, row.error)
                self._fail(row.index, "row", reason, str(detail))
            else:
                self.to_load.append(replace(row, index=first_row + row.index))
        self.num_open = len(self.to_load)

    def put(self, slot: int, sample: NDArray[Any]) -> None:
        """Take the sample of a row; in any thread."""
        self._samples[self._numbers[slot - self._first_row]] = sample

    def note(self, outcome: Outcome) -> None:
        """Take note of what became of a row.

        Raises:
            LoadError: It failed, and `on_error` is "raise".
        """
        self.num_open -= 1
        if (failure := outcome.failure) is not None:
            self._fail(outcome.slot - self._first_row, failure.stage, failure.reason, failure.detail)

    def _fail(self, index: int, stage: str, reason: str, detail: str) -> None:
        if self._stage.request.on_error == "raise":
            row = self._rows[index]
            what = [row.source.label] if row.source is not None else []
            what += [f'"{caption:.60}"' for caption in row.captions[:1]]
            raise LoadError(
                f"row {self._first_row + index:,} of its block ({', '.join(what) or 'which has nothing'}): {reason} at "
                f'{stage}: {detail}. With on_error="placeholder" or "skip" the pipeline goes on without it'
            )
        number = self._numbers[index]
        self._reasons[number], self._samples[number] = reason, self._stage.placeholder

    def finish(self) -> pa.Table:
        """Give the rows as they come out."""
        from ray.data.extensions import ArrowTensorArray

        spec, table, numbers, rows = self._stage.request.spec, self._table, self._numbers, self._rows
        reasons = [self._reasons[number] for number in numbers.tolist()]
        if self._stage.request.on_error == "skip" and any(reasons):
            kept = [index for index, reason in enumerate(reasons) if not reason]
            table, numbers = table.take(pa.array(kept, pa.int64())), numbers[kept]
            rows, reasons = [rows[index] for index in kept], [""] * len(kept)
        columns: dict[str, Any] = {}
        if isinstance(spec, ImageSpec):
            is_as_it_lies = np.array_equal(numbers, np.arange(len(self._samples)))
            columns["image"] = ArrowTensorArray.from_numpy(self._samples if is_as_it_lies else self._samples[numbers])
        else:
            columns["audio"] = _ragged([self._samples[number] for number in numbers.tolist()], spec.dtype)
            columns["sampling_rate"] = pa.array(np.full(len(rows), spec.target_sr, np.int64))
        columns["caption"] = pa.array([row.captions[0] if row.captions else "" for row in rows], pa.string())
        columns["valid"] = pa.array([not reason for reason in reasons], pa.bool_())
        columns["reason"] = pa.array(reasons, pa.string())
        for name, column in columns.items():
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        return table.replace_schema_metadata(None)  # which tells pandas, or `datasets`, of the columns there were


def decode_block(table: pa.Table, stage: Stage) -> Iterator[pa.Table]:
    """Decode the samples of a block of rows, and give these in pieces, in order; what a worker runs.

    Being a generator, it also lets errors through as what they are: what a plain function raises, Ray wraps.

    Raises:
        ConfigError: A column is missing.
        LoadError: A row failed, and `on_error` is "raise".
    """
    share_decode_memory(stage.workers_of_node)
    pieces: dict[int, _Piece] = {}
    size, begun, num_pieces = stage.batch_size, 0, -(-table.num_rows // stage.batch_size)

    def put(slot: int, sample: NDArray[Any], num_frames: int) -> Placed:
        pieces[slot // size].put(slot, sample)
        return Placed(0, sample.nbytes, num_frames, 0)

    threads = Threads(
        put,
        stage.request,
        is_encoded=lambda slot: False,
        max_buffered_bytes=max(_LEAST_BUFFERED_BYTES, _BUFFERED_BYTES // stage.workers_of_node),
    )
    with threads:
        for number in range(num_pieces):
            while begun < min(num_pieces, number + stage.num_pieces):
                piece = pieces[begun] = _Piece(stage, table.slice(begun * size, size), begun * size)
                for row in piece.to_load:
                    threads.begin(row)
                begun += 1
            while pieces[number].num_open:
                for outcome in threads.done.take(pieces[number].num_open):
                    if isinstance(outcome, BaseException):
                        raise outcome
                    pieces[outcome.slot // size].note(outcome)
            yield pieces.pop(number).finish()


def _read(table: pa.Table, media: Column, captions: Column, columns: tuple[ColumnSpec, ColumnSpec]) -> list[Row]:
    """Read the rows of a table, as far as columns are needed."""
    if media.roots is not None and captions.roots is not None:
        table = table.select(list(dict.fromkeys((*media.roots, *captions.roots))))
    reader = open_rows(table.to_pylist(), media_col=columns[0], txt_col=columns[1], max_samples=None)
    return [row for rows in reader.batches() for row in rows]


def _ragged(clips: list[NDArray[Any]], dtype: str) -> Any:
    """Pack clips end to end into one column; Ray makes none of no clips."""
    from ray.data.extensions import ArrowVariableShapedTensorArray

    return ArrowVariableShapedTensorArray.from_numpy(clips or [np.zeros(1, dtype)])[: len(clips)]
