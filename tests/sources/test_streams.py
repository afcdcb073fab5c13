"""Streams of the Hub's library: how far they are read, what they are told, and how a load of one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.distributed import split_dataset_by_node

from in_memory_datasets import InMemoryImageTextDataset, LoadError
from in_memory_datasets.rows import open_rows
from tests.unit.rows.media import png

NUM_ROWS = 40


def numbered(read: list[int], broken: list[int]) -> Iterator[dict[str, Any]]:
    for number in range(NUM_ROWS):
        read.append(number)
        if number in broken:
            raise OSError(f"no answer from https://me:geheim@a.example/{number}")
        yield {"image": {"bytes": png(number), "path": None}, "caption": f"row {number}"}


def captions_of(data: Any, **changes: Any) -> list[str]:
    arguments: dict[str, Any] = {"image_size": (6, 6), "progress": False, **changes}
    with InMemoryImageTextDataset(data, "image", **arguments) as dataset:
        assert dataset.failed_indices == []
        return [str(dataset[i]["caption"]) for i in range(len(dataset))]


def stream_of_rows(read: list[int], *, declared: bool, broken: list[int] | None = None) -> Any:
    types = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.IterableDataset(
        datasets.iterable_dataset.ExamplesIterable(
            lambda: enumerate(numbered(read, broken or [])), {}
        ),
        info=datasets.DatasetInfo(features=types if declared else None),
    )  # fmt: skip


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("max_samples", [1, 31, 32, 33])
def test_only_as_many_rows_are_read_as_are_asked_for(declared: bool, max_samples: int) -> None:
    """A stream whose columns are not declared is begun twice: its first row tells what they are."""
    read: list[int] = []
    data = stream_of_rows(read, declared=declared)
    assert captions_of(data, max_samples=max_samples) == [f"row {i}" for i in range(max_samples)]
    assert read == ([] if declared else [0]) + list(range(max_samples))


@pytest.mark.parametrize("declared", [True, False])
def test_what_is_wrong_with_a_stream_is_told_with_its_row(declared: bool) -> None:
    broken = stream_of_rows([], declared=declared, broken=[25])
    with pytest.raises(LoadError, match=r"broke off after 25 rows: OSError: no answer from https://\*\*\*@a.example"):
        captions_of(broken)
    assert captions_of(broken, max_samples=25) == [f"row {i}" for i in range(25)]


def test_a_function_of_the_users_that_raises_is_told_with_its_row() -> None:
    def upper(row: dict[str, Any]) -> dict[str, Any]:
        if row["caption"] == "row 7":
            raise ZeroDivisionError("seven")
        return {"caption": row["caption"].upper()}

    with pytest.raises(LoadError, match="broke off after 7 rows: ZeroDivisionError: seven"):
        captions_of(stream_of_rows([], declared=True).map(upper))


def test_streams_of_every_make_give_their_own_rows_in_their_own_order(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(
        [{"image": str(tmp_path / f"{i}.png"), "caption": f"row {i}"} for i in range(20)]
    )
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    table.to_parquet(tmp_path / "rows.parquet")
    table.to_json(tmp_path / "rows.jsonl")
    for kind, name in (("parquet", "rows.parquet"), ("json", "rows.jsonl")):
        data = datasets.load_dataset(kind, data_files=str(tmp_path / name), split="train", streaming=True)
        for made in (
            data,
            data.shuffle(seed=3, buffer_size=5),
            data.take(9),
            data.skip(3).filter(lambda row: not row["caption"].endswith("5")),
            data.map(lambda row: {"caption": row["caption"] * 2}),
            data.rename_column("caption", "text").map(lambda row: {"caption": row["text"]}, remove_columns="text"),
            split_dataset_by_node(data, 1, 2),
            data.batch(2).map(lambda row: {"image": row["image"][0], "caption": row["caption"][1]}),
        ):
            expected = [row["caption"] for row in made]
            assert captions_of(made) == expected
            assert captions_of(made, max_samples=4) == expected[:4]
    assert len(expected) == 10


RESUMED = """
import os, signal, sys
import datasets
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset

def rows(folder):
    for number in range(40):
        if number == 33 and os.path.exists(folder + "/die"):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"image": f"{folder}/{number}.png", "caption": f"row {number}"}

folder = sys.argv[1]
data = datasets.IterableDataset.from_generator(rows, gen_kwargs={"folder": folder})
options = {"image_size": (6, 6), "progress": False, "cache_dir": folder + "/cache"}
few_at_once = {"fetch": FetchOptions(concurrency=1), "num_threads": 1}  # six samples are under way at most
with InMemoryImageTextDataset(data, "image", **options, **few_at_once) as dataset:
    print([dataset[i]["caption"] for i in range(len(dataset))] == [f"row {i}" for i in range(40)])
    print(dataset.report.bytes_fetched)
"""


def test_a_load_of_a_stream_that_was_killed_goes_on_from_there(tmp_path: Path) -> None:
    sizes = []
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        sizes.append(len(png(i)))
    script = tmp_path / "load.py"
    script.write_text(RESUMED)
    command = [sys.executable, str(script), str(tmp_path)]
    (tmp_path / "die").touch()
    died = subprocess.run(command, capture_output=True, text=True, timeout=150, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL
    (tmp_path / "die").unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    is_whole, bytes_fetched = done.stdout.split()
    assert is_whole == "True"
    assert 0 < int(bytes_fetched) <= sum(sizes[32 - 6 :])


def test_rows_of_addresses_are_not_kept_in_memory() -> None:
    """A quarter of a million of them are opened, planned for and read in the memory of some thousand."""
    import tracemalloc

    import pyarrow as pa

    num_rows = 250_000
    table = pa.table(
        {
            "image_url": pa.array([f"https://a.example/{i}.jpg" for i in range(num_rows)]),
            "caption": pa.array([f"picture {i}" for i in range(num_rows)]),
        }
    )
    data = datasets.Dataset(table)
    tracemalloc.start()
    plan = InMemoryImageTextDataset.plan(data)
    reader = open_rows(data, media_col="image_url", txt_col="caption", max_samples=None)
    last = None
    for batch in reader.batches():
        last = batch[-1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last is not None
    assert (plan.num_samples, last.index, last.captions) == (num_rows, num_rows - 1, (f"picture {num_rows - 1}",))
    assert peak < 8e6
