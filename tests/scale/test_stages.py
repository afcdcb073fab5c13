"""A stage of Ray Data: rows in, and the same rows with decoded samples out; what cannot be had is data too."""

from __future__ import annotations

import inspect
import io
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import soundfile
from numpy.typing import NDArray

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.errors import ConfigError, LoadError
from in_memory_datasets.scale import decode_into_rows
from in_memory_datasets.scale.stages import Stage, decode_block
from in_memory_datasets.schema import ImageSpec
from tests.scale.conftest import PictureServer
from tests.serving import LocalServer, QuietHandler

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("quiet_pipelines"),
    # Ray's, of pipelines that have fewer blocks than they may have workers, as all of these.
    pytest.mark.filterwarnings("ignore:The maximum number of concurrent tasks:UserWarning"),
]

FETCH = FetchOptions(allow_private_addresses=True, retries=0)
SIZE = {"image_size": (8, 6), "fetch": FETCH}


@pytest.fixture(scope="module")
def quiet_pipelines(cluster: Any) -> Iterator[None]:
    """Let pipelines run in order, and without progress bars; nothing of it stays set."""
    with warnings.catch_warnings():
        # Ray's, of its own settings, when they are made.
        warnings.filterwarnings("ignore", "`use_push_based_shuffle` is deprecated", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    yield
    context.enable_progress_bars, context.execution_options.preserve_order = before


def picture(number: int) -> NDArray[np.uint8]:
    return np.full((6, 8, 3), number % 251, np.uint8)


def dataset_of(rows: list[dict[str, Any]], *, num_blocks: int = 1) -> ray.data.Dataset:
    return ray.data.from_items(rows, override_num_blocks=num_blocks)


def rows_of(server: LocalServer, numbers: range, *, num_blocks: int = 1) -> ray.data.Dataset:
    """Give rows of pictures; every seventh is not there."""
    names = [f"{number}.png" if number % 7 else "lost.png" for number in numbers]
    rows = [
        {"id": number, "image_url": f"{server.url}/{name}", "caption": f"caption {number}"}
        for number, name in zip(numbers, names, strict=True)
    ]
    return dataset_of(rows, num_blocks=num_blocks)


def wav(num_frames: int, level: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(num_frames, level), 100, format="wav", subtype="FLOAT")
    return file.getvalue()


def test_rows_come_out_in_order_with_their_picture_and_what_failed_is_data(picture_server: PictureServer) -> None:
    """Over HTTP, of several blocks and pieces: all columns are kept, and a 404 is a grey picture with its reason."""
    decoded = decode_into_rows(
        rows_of(picture_server, range(40), num_blocks=3), InMemoryImageTextDataset, **SIZE, batch_size=5, concurrency=2
    )
    rows = decoded.take_all()
    assert [row["id"] for row in rows] == list(range(40))
    for number, row in enumerate(rows):
        assert set(row) == {"id", "image_url", "caption", "image", "valid", "reason"}
        assert row["caption"] == f"caption {number}"
        assert (row["valid"], row["reason"]) == ((True, "") if number % 7 else (False, "http_404"))
        assert row["image"].dtype == np.uint8
        assert np.array_equal(row["image"], picture(number) if number % 7 else np.full((6, 8, 3), 128))


def test_columns_have_the_types_that_are_announced() -> None:
    """A batch of pictures is one array, and the other columns have types of their own, also where nothing is valid."""
    for value in (picture(3), None):
        rows = [{"image_url": value, "caption": "one"}, {"image_url": value, "caption": None}]
        decoded = decode_into_rows(dataset_of(rows), InMemoryImageTextDataset, **SIZE)
        batch = decoded.take_batch(2, batch_format="numpy")
        assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (2, 6, 8, 3))
        assert batch["valid"].dtype == np.bool_
        assert batch["caption"].tolist() == ["one", ""]
        schema = decoded.schema().base_schema
        assert [schema.field(name).type for name in ("caption", "valid", "reason")] == [
            pa.string(),
            pa.bool_(),
            pa.string(),
        ]


def test_bytes_are_decoded_and_give_way_to_the_picture(encode_png: Callable[..., bytes]) -> None:
    """A column of encoded pictures, also in the form that `datasets` gives it, is replaced by one of pixels."""
    plain = [{"image": encode_png(picture(i)), "text": ["first", "second"]} for i in range(3)]
    nested = [{**row, "image": {"bytes": row["image"], "path": None}} for row in plain]
    for rows in (plain, nested):
        decoded = decode_into_rows(
            dataset_of(rows), InMemoryImageTextDataset, "image", "text", image_size=(8, 6)
        ).take_all()
        assert [row["image"].mean() for row in decoded] == [0, 1, 2]
        assert [(row["caption"], list(row["text"])) for row in decoded] == [("first", ["first", "second"])] * 3


@pytest.mark.parametrize(("dtype", "level"), [("float32", 0.5), ("int16", 16384)])
def test_clips_have_their_own_lengths_and_silence_stands_for_lost_ones(
    dtype: str, level: float, tmp_path: Path
) -> None:
    """Clips come out as long as they are, cut at max_duration; a lost one is a second of silence."""
    rows: list[dict[str, Any]] = [{"audio": wav(num_frames), "caption": "tone"} for num_frames in (30, 150, 900)]
    rows.append({"audio": str(tmp_path / "lost.wav"), "caption": "gone"})
    table = pa.table(
        {
            "audio": pa.array([{"bytes": row["audio"]} if row["caption"] == "tone" else None for row in rows]),
            "caption": [row["caption"] for row in rows],
        }
    )
    decoded = decode_into_rows(
        ray.data.from_arrow(table), InMemoryAudioTextDataset, target_sr=100, max_duration=5.0, dtype=dtype
    ).take_all()
    assert [len(row["audio"]) for row in decoded] == [30, 150, 500, 100]
    assert {row["audio"].dtype for row in decoded} == {np.dtype(dtype)}
    assert {row["sampling_rate"] for row in decoded} == {100}
    assert [row["audio"].max() for row in decoded] == [level, level, level, 0]
    assert [row["reason"] for row in decoded] == ["", "", "", "empty"]


def test_rows_that_failed_are_left_out_on_request(picture_server: PictureServer) -> None:
    """With on_error="skip" the other rows come out, also of a piece, or a pipeline, of which nothing is left."""
    rows = rows_of(picture_server, range(20))
    decoded = decode_into_rows(rows, InMemoryImageTextDataset, **SIZE, on_error="skip", batch_size=4).take_all()
    assert [row["id"] for row in decoded] == [number for number in range(20) if number % 7]
    assert all(row["valid"] and np.array_equal(row["image"], picture(row["id"])) for row in decoded)
    lost = [{"audio": None, "caption": "gone"}, {"audio": b"no clip", "caption": "neither"}]
    for cls, column in ((InMemoryImageTextDataset, "image_url"), (InMemoryAudioTextDataset, "audio")):
        nothing = dataset_of([{column: row["audio"], "caption": row["caption"]} for row in lost])
        assert decode_into_rows(nothing, cls, on_error="skip").take_all() == []


def test_a_pipeline_ends_at_a_failure_on_request(picture_server: PictureServer) -> None:
    """With on_error="raise" the error is a LoadError that names the row, by its source and its caption."""
    decoded = decode_into_rows(
        rows_of(picture_server, range(1, 20)), InMemoryImageTextDataset, **SIZE, on_error="raise"
    )
    with pytest.raises(
        LoadError, match=rf'row 6 of its block \({picture_server.url}/lost.png, "caption 7"\): http_404'
    ):
        decoded.take_all()
    nothing = decode_into_rows(
        dataset_of([{"image_url": None, "caption": "nothing"}]), InMemoryImageTextDataset, on_error="raise"
    )
    with pytest.raises(LoadError, match=r'row 0 of its block \("nothing"\): empty at row'):
        nothing.take_all()


def test_a_pipeline_in_which_all_fails_goes_on(picture_server: PictureServer) -> None:
    """That nothing could be had is data as well: every row comes out, with its reason."""
    rows = [{"image_url": f"{picture_server.url}/lost {i}.png", "caption": ""} for i in range(7)]
    decoded = decode_into_rows(dataset_of(rows), InMemoryImageTextDataset, **SIZE, batch_size=3).take_all()
    assert [(row["valid"], row["reason"]) for row in decoded] == [(False, "http_404")] * 7
    assert all((row["image"] == 128).all() for row in decoded)


def test_the_address_guard_holds_in_a_stage(picture_server: PictureServer) -> None:
    """Addresses of this network are not asked unless that is allowed."""
    decoded = decode_into_rows(rows_of(picture_server, range(1, 3)), InMemoryImageTextDataset, image_size=(8, 6))
    assert [row["reason"] for row in decoded.take_all()] == ["blocked_address"] * 2
    assert picture_server.asked == []


def not_to_be_called(row: Any) -> Any:
    raise AssertionError("the pipeline ran")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cache_dir": "/tmp/x"}, "cache_dir='/tmp/x' is not for a stage.*write_parquet"),
        ({"storage": "encoded"}, "storage='encoded' is not for a stage"),
        ({"wait": False}, "wait=False is not for a stage"),
        ({"output": "pil"}, "output='pil' is not for a stage.*iter_torch_batches"),
        ({"transform": len}, r"transform=<built-in function len> is not for a stage.*map\(\)"),
        ({"batch_transform": len}, "batch_transform=.*map_batches"),
        ({"captions": "all"}, "captions='all' is not for a stage"),
        ({"memory_limit": "1GB"}, "memory_limit='1GB' is not for a stage.*batch_size"),
        ({"lock_memory": True}, "lock_memory=True is not for a stage"),
        ({"max_samples": 5}, r"max_samples=5 is not for a stage.*limit\(n\)"),
        ({"progress": False}, "progress=False is not for a stage"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"resize": "zoom"}, "resize='zoom': choose"),
        ({"on_error": "ignore"}, "on_error='ignore': choose"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number"),
        ({"batch_size": None}, "batch_size=None: expected a whole number"),
        ({"concurrency": 0}, "concurrency=0: expected a whole number"),
        ({"concurrency": (1, 2)}, r"concurrency=\(1, 2\): expected a whole number"),
        ({"num_cpus": 0}, "num_cpus=0: expected a number above 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(kwargs: dict[str, Any], message: str) -> None:
    """Before any row is read, with what to do instead."""
    rows = dataset_of([{"image_url": "a.jpg", "caption": ""}]).map(not_to_be_called)
    with pytest.raises(ConfigError, match=message):
        decode_into_rows(rows, InMemoryImageTextDataset, **kwargs)


def test_what_is_no_dataset_no_class_and_no_argument_is_refused() -> None:
    """Neither lists nor other classes are taken, nor arguments that the class does not have."""
    rows = dataset_of([{"image_url": "a.jpg", "caption": ""}])
    with pytest.raises(ConfigError, match=r"a list is no ray\.data\.Dataset"):
        decode_into_rows([{"image_url": "a.jpg"}], InMemoryImageTextDataset)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected InMemoryImageTextDataset or InMemoryAudioTextDataset"):
        decode_into_rows(rows, dict)
    with pytest.raises(TypeError, match="unexpected keyword argument 'pad_to'"):
        decode_into_rows(rows, InMemoryImageTextDataset, pad_to="max")
    with pytest.raises(ConfigError, match="crop='random' is not for a stage"):
        decode_into_rows(rows, InMemoryAudioTextDataset, "image_url", crop="random")


def test_columns_are_checked_as_soon_as_they_are_known(picture_server: PictureServer) -> None:
    """At once where Ray knows them, else in the first block: missing ones, and those that would be lost."""
    rows = rows_of(picture_server, range(2))
    with pytest.raises(ConfigError, match=r"no column 'url' for the media.*did you mean 'image_url'"):
        decode_into_rows(rows, InMemoryImageTextDataset, "url")
    with pytest.raises(ConfigError, match="'id' holds int64, not captions"):
        decode_into_rows(dataset_of([{"image_url": "a.jpg", "id": 3}]), InMemoryImageTextDataset, txt_col="id")
    taken = dataset_of([{"image_url": "a.jpg", "text": "", "caption": "another one"}])
    with pytest.raises(ConfigError, match=r"a column 'caption' already.*rename_columns"):
        decode_into_rows(taken, InMemoryImageTextDataset, txt_col="text")
    unknown = rows.map_batches(lambda batch: batch)
    decoded = decode_into_rows(unknown, InMemoryImageTextDataset, "url")
    with pytest.raises(ConfigError, match="no column 'url' for the media"):
        decoded.take_all()
    assert picture_server.asked == []


def test_a_column_may_be_a_callable() -> None:
    """What is called in the workers gets the whole row."""
    rows = [{"number": i, "text": "two"} for i in range(3)]
    decoded = decode_into_rows(
        dataset_of(rows),
        InMemoryImageTextDataset,
        lambda row: np.full((6, 8, 3), row["number"], np.uint8),
        lambda row: f"{row['text']} and {row['number']}",
        image_size=(8, 6),
    ).take_all()
    assert [(row["image"].mean(), row["caption"]) for row in decoded] == [(i, f"two and {i}") for i in range(3)]


def test_a_source_is_fetched_once_a_piece(picture_server: PictureServer) -> None:
    """Rows of a piece that name the same source have the same picture, which is asked for once."""
    numbers = [1, 2, 1, 1, 2, 3]
    rows = [{"image_url": f"{picture_server.url}/{number}.png", "caption": ""} for number in numbers]
    dataset = dataset_of(rows)
    decoded = decode_into_rows(dataset, InMemoryImageTextDataset, **SIZE).take_all()
    assert [row["image"].mean() for row in decoded] == numbers
    assert sorted(picture_server.asked) == ["1.png", "2.png", "3.png"]


def stage_of(spec: ImageSpec, batch_size: int) -> Stage:
    """Give what the workers are told, as it is handed to Ray."""
    handed: dict[str, Any] = {}
    rows = dataset_of([{"image_url": "a.jpg", "caption": ""}])
    rows.map_batches = lambda fn, **kwargs: handed.update(kwargs)
    decode_into_rows(
        rows, InMemoryImageTextDataset, image_size=spec.image_size, fetch=FETCH, batch_size=batch_size, num_cpus=2
    )
    assert (handed["compute"].size, handed["num_cpus"]) == (4, 2)
    stage: Stage = handed["fn_kwargs"]["stage"]
    return stage


def test_the_workers_of_a_node_share_what_one_machine_does() -> None:
    """Two workers of two cores have room on each node: they have two threads, and half of the requests, each."""
    request = stage_of(ImageSpec((8, 6)), 4).request
    assert request.num_threads == 2
    assert (request.fetch.concurrency, request.fetch.per_host) == (FETCH.concurrency // 2, FETCH.per_host // 2)


def test_the_next_piece_is_under_way_while_one_waits_for_its_last_source(encode_png: Callable[..., bytes]) -> None:
    """A source that answers only when one of the next piece is asked for delays nobody; the order stays."""
    is_asked = threading.Event()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            number = int(self.path.strip("/").partition(".")[0])
            if number == 3:
                is_asked.set()
            self.send_body(encode_png(picture(number)) if number or is_asked.wait(30) else None)

    with LocalServer(Handler) as server:
        table = pa.Table.from_pylist([{"image_url": f"{server.url}/{i}.png", "caption": ""} for i in range(6)])
        pieces = list(decode_block(table, stage_of(ImageSpec((8, 6)), 2)))
    assert [piece.num_rows for piece in pieces] == [2, 2, 2]
    assert [bool(valid) for piece in pieces for valid in piece["valid"].to_pylist()] == [True] * 6
    images = np.concatenate([piece["image"].combine_chunks().to_numpy() for piece in pieces])
    assert images[:, 0, 0, 0].tolist() == list(range(6))


def test_a_stage_that_is_left_early_ends_its_threads(picture_server: PictureServer) -> None:
    """Whoever takes a few rows leaves nothing running behind."""
    table = pa.Table.from_pylist([{"image_url": f"{picture_server.url}/{i}.png", "caption": ""} for i in range(9)])
    pieces = decode_block(table, stage_of(ImageSpec((8, 6)), 2))
    assert next(pieces).num_rows == 2
    pieces.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-memory-datasets")]


def test_the_example_runs(picture_server: PictureServer) -> None:
    """The example of the docstring does what it says."""
    found = re.search(r"```python\n(.*?)```", inspect.getdoc(decode_into_rows) or "", re.DOTALL)
    assert found is not None
    names = {"ray": ray, "url": picture_server.url, "fetch": FETCH}
    for each in (decode_into_rows, InMemoryImageTextDataset):
        names[each.__name__] = each
    exec(textwrap.dedent(found[1]), names)
    assert len(picture_server.asked) == 4
