"""Stores on disk that are not as they should be, and what lies in them for other readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from safetensors.numpy import load_file

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import Row, Source
from in_memory_datasets.store import Block, attach_or_build, locked, open_store, save_store
from in_memory_datasets.store.layout import HEADER_BYTES, map_arrays, pack_header
from in_memory_datasets.store.table import RowTable, TableWriter
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_images, make_store


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with make_store(IMAGE_SPEC, [*make_images(3), None]) as store:
        save_store(store, tmp_path / "store")
    return tmp_path / "store"


def test_any_safetensors_and_arrow_reader_reads_a_store(saved: Path) -> None:
    images = load_file(saved / "samples.safetensors")["images"]
    np.testing.assert_array_equal(images[:3], make_images(3))
    with pa.memory_map(str(saved / "rows.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all().to_pylist()
    assert [row["captions"] for row in rows] == [[f"caption {i}"] for i in range(4)]
    assert [row["status"] for row in rows] == [1, 1, 1, 2]
    assert rows[3]["reason"] == "not_found"
    assert rows[0]["checksum"] == xxhash.xxh3_64_intdigest(images[0].tobytes())
    del rows, images


def test_clips_lie_end_to_end_behind_their_offsets(tmp_path: Path) -> None:
    with make_store(AUDIO_SPEC, make_clips([5, 7])) as store:
        save_store(store, tmp_path / "clips")
    arrays = load_file(tmp_path / "clips/samples.safetensors")
    assert arrays["offsets"].tolist() == [0, 5, 12]
    assert arrays["frames"].dtype == np.int16


def test_arrival_order_does_not_change_a_bit(tmp_path: Path) -> None:
    for kind, spec, samples in (
        ("images", IMAGE_SPEC, make_images(5)),
        ("clips", AUDIO_SPEC, make_clips([3, 99, 1, 50, 8])),
    ):
        for name, order in (("a", [0, 1, 2, 3, 4]), ("b", [4, 1, 3, 0, 2])):
            with make_store(spec, samples, order=order) as store:
                save_store(store, tmp_path / kind / name)
        for file in ("samples.safetensors", "rows.arrow", "manifest.json"):
            assert (tmp_path / kind / "a" / file).read_bytes() == (tmp_path / kind / "b" / file).read_bytes()


@pytest.mark.parametrize("file", ["samples.safetensors", "rows.arrow"])
@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_short_file_is_refused_at_once(saved: Path, file: str, keep: int) -> None:
    data = (saved / file).read_bytes()
    (saved / file).write_bytes(data[:keep])
    with pytest.raises(StoreError, match=str(saved)):
        open_store(saved)


@pytest.mark.parametrize("file", ["samples.safetensors", "rows.arrow", "manifest.json"])
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(StoreError, match=file):
        open_store(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99, this library reads 1"),
        ({"format": "other"}, "does not describe a dataset of this library"),
        ({"modality": "video"}, "damaged"),
        ({"spec": {"image_size": [0, 1]}}, "damaged"),
        ({"spec": {"image_size": [4, 4]}}, r"expected 'images' uint8 \(4, 4, 4, 3\)"),
        ({"num_samples": 3}, "4 rows, expected 3"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_the_reason(
    saved: Path, change: dict[str, object], message: str
) -> None:
    unsigned = {"format", "version", "modality", "spec", "num_samples", "complete"}  # as the first manifests were
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest = {name: value for name, value in manifest.items() if name in unsigned}
    (saved / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(StoreError, match=message):
        open_store(saved)


def test_a_manifest_that_is_no_json_is_refused(saved: Path) -> None:
    (saved / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        open_store(saved)


def test_a_directory_with_other_files_is_not_written_into(saved: Path) -> None:
    (saved / "thesis.tex").write_text("")
    with make_store(IMAGE_SPEC, make_images(1)) as store, pytest.raises(StoreError, match=r"thesis\.tex"):
        save_store(store, saved)


def test_saving_over_a_store_leaves_its_readers_alone(saved: Path) -> None:
    with open_store(saved) as old, make_store(IMAGE_SPEC, make_images(2, seed=9)) as new:
        save_store(new, saved)
        np.testing.assert_array_equal(old.sample(0), make_images(1)[0])
    with open_store(saved) as store:
        assert store.num_samples == 2


def test_failed_images_take_no_memory(tmp_path: Path) -> None:
    samples: list[object] = [None] * 2000
    samples[0] = make_images(1)[0]
    with make_store(IMAGE_SPEC, samples) as store:  # type: ignore[arg-type]
        save_store(store, tmp_path / "sparse")
    assert (tmp_path / "sparse/samples.safetensors").stat().st_blocks * 512 < 100_000
    with open_store(tmp_path / "sparse") as store:
        assert store.num_samples == 2000


def test_a_header_with_a_gap_or_an_overlap_is_refused() -> None:
    header = pack_header({"a": ("uint8", (4,)), "b": ("int64", (2,))})
    arrays = map_arrays(memoryview(header + bytes(4 + 16)))
    assert arrays["b"].tolist() == [0, 0]
    assert len(header) == HEADER_BYTES
    for wrong in (
        header.replace(b"[4,20]", b"[3,19]"),
        header.replace(b'"I64"', b'"I16"'),
        header.replace(b"U8", b"Q8"),
    ):
        with pytest.raises(StoreError, match="damaged"):
            map_arrays(memoryview(wrong + bytes(20)))
    with pytest.raises(StoreError, match="expected 4,116"):
        map_arrays(memoryview(header + bytes(21)))


def test_the_cache_builds_once_and_attaches_ever_after(tmp_path: Path) -> None:
    built = []

    def build(directory: Path):  # type: ignore[no-untyped-def]
        built.append(directory)
        return make_store(IMAGE_SPEC, make_images(2), directory=directory)

    for _ in range(3):
        with attach_or_build(tmp_path / "cache", "abc", build) as store:
            assert store.num_samples == 2
    assert built == [tmp_path / "cache/abc"]


def test_an_interrupted_build_is_begun_anew(tmp_path: Path) -> None:
    def fail(directory: Path):  # type: ignore[no-untyped-def]
        (directory / "samples.safetensors.partial").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attach_or_build(tmp_path, "abc", fail)
    with attach_or_build(
        tmp_path, "abc", lambda directory: make_store(IMAGE_SPEC, make_images(2), directory=directory)
    ) as store:
        assert store.verify() == []
    assert {path.name for path in (tmp_path / "abc").iterdir()} == {
        "manifest.json",
        "rows.arrow",
        "samples.safetensors",
    }


def test_what_a_builder_left_that_was_ended_at_the_very_end_is_removed_unless_somebody_is_at_work(
    tmp_path: Path,
) -> None:
    """Its spool is as large as the dataset, and nobody would ever look at it again."""
    build = lambda directory: make_store(IMAGE_SPEC, make_images(2), directory=directory)  # noqa: E731
    attach_or_build(tmp_path, "abc", build).close()
    left = [tmp_path / "abc" / name for name in ("encoded.partial", "manifest.json.partial")]
    for path in left:
        path.write_bytes(b"work")
    with locked(tmp_path / "abc"), attach_or_build(tmp_path, "abc", build):
        assert all(path.exists() for path in left)
    with attach_or_build(tmp_path, "abc", build) as store:
        assert store.verify() == []
    assert len(list((tmp_path / "abc").iterdir())) == 3


def test_a_block_that_may_not_be_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"abc")
    path.chmod(0o444)
    with Block.open(path) as block:
        assert bytes(block.view()) == b"abc"


def test_opening_imports_nothing_that_takes_longer_than_opening(tmp_path: Path) -> None:
    """pandas is installed where `datasets` is, and pyarrow imports it at the first chance."""
    make_store(IMAGE_SPEC, [*make_images(3), None], directory=tmp_path).close()
    code = f"""
import sys
from in_memory_datasets import InMemoryImageTextDataset
before = set(sys.modules)
with InMemoryImageTextDataset.load({str(tmp_path)!r}) as dataset:
    dataset.__getitems__([0, 1])
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_three_captions_of_three_rows_are_not_taken_for_one_each() -> None:
    captions = [("one", "two"), (), ("three",)]
    with make_store(IMAGE_SPEC, make_images(3), captions=captions) as store:
        assert store.table.caption(np.arange(3)) == ["one", "", "three"]
        assert [store.table.captions(slot) for slot in range(3)] == [list(row) for row in captions]


@pytest.mark.parametrize("num_kept", [2100, 2048, 1500, 1024, 20, 0])
def test_rows_are_the_same_however_many_are_added_at_once_and_wherever_they_are_cut_off(num_kept: int) -> None:
    rows = [Row(i, Source("path", f"{i}.jpg"), (f"a {i}", "b")[: i % 3]) for i in range(2100)]
    buffers = []
    for num_at_once in (32, 1000, 2100):
        writer = TableWriter()
        for start in range(0, len(rows), num_at_once):
            writer.add(rows[start : start + num_at_once])
        if num_at_once == 1000:  # they may be looked at before they are cut off
            writer.to_buffer()
        writer.truncate(num_kept)
        buffers.append(writer.to_buffer().to_pybytes())
    assert buffers[1:] == buffers[:1] * 2
    table = RowTable(memoryview(buffers[0]))
    assert table.num_rows == num_kept
    for i in range(0, num_kept, 7):
        assert (table.source(i), table.captions(i)) == (f"{i}.jpg", [f"a {i}", "b"][: i % 3])
