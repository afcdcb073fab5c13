"""Rows that share samples, in the store alone: what is said of one is said of all, and each sample lies there once."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec
from in_memory_datasets.store import Block, SharedEnd, Store, StoreWriter, open_store, save_store
from in_memory_datasets.store.journal import Journal, num_journaled
from in_memory_datasets.store.manifest import make_manifest, read_manifest, write_manifest
from in_memory_datasets.store.places import Places
from in_memory_datasets.store.table import RowTable, TableWriter
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_images, make_rows

NUMBERS = [0, 1, 0, 2, 2, 1, 3, 0]
FIRSTS = [0, 1, 3, 6]
SPECS: dict[str, Any] = {"images": IMAGE_SPEC, "clips": AUDIO_SPEC}
SAMPLES: dict[str, Any] = {"images": make_images(4), "clips": make_clips([5, 30, 2, 8])}
KINDS = ["images", "clips"]


def not_found(slot: int) -> Failure:
    return Failure(slot, f"/data/{slot}.bin", "fetch", "not_found", "there is no such file", "", 1)


def add(writer: StoreWriter, numbers: Sequence[int] = NUMBERS, start: int = 0) -> None:
    rows = make_rows([(f"caption {i}",) for i in range(start + len(numbers))])
    writer.add_rows(rows[start:], np.array(numbers, np.int64))


def make_store(
    kind: str, *, order: Sequence[int] = (0, 1, 2, 3), failed: Sequence[int] = (), directory: Path | None = None
) -> Store:
    with StoreWriter(SPECS[kind], directory=directory) as writer:
        add(writer)
        for number in order:
            slot = FIRSTS[number]
            if number in failed:
                writer.failed(not_found(slot))
            else:
                writer.loaded(slot, writer.put(slot, SAMPLES[kind][number]))
        return writer.finish()


def check(store: Store, kind: str, *, failed: Sequence[int] = ()) -> None:
    assert (store.num_samples, store.num_unique) == (8, 4)
    for slot, number in enumerate(NUMBERS):
        assert store.table.status[slot] == (2 if number in failed else 1)
        if number not in failed:
            np.testing.assert_array_equal(store.sample(slot), SAMPLES[kind][number])
        assert store.table.captions(slot) == [f"caption {slot}"]
        assert store.table.source(slot) == f"/data/{slot}.bin"
    assert [failure.index for failure in store.table.failures()] == [i for i, n in enumerate(NUMBERS) if n in failed]
    assert store.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_its_sample_and_each_sample_lies_there_once(tmp_path: Path, kind: str) -> None:
    with make_store(kind) as store:
        check(store, kind)
        media = store.frames if store.images is None else store.images
        assert media is not None
        assert media.nbytes == sum(sample.nbytes for sample in SAMPLES[kind])
        save_store(store, tmp_path)
        with pickle.loads(pickle.dumps(store)) as copy, open_store(tmp_path) as opened:
            check(copy, kind)
            check(opened, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_arrives_first_does_not_change_a_bit(tmp_path: Path, kind: str) -> None:
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 1, 0, 2])):
        (tmp_path / name).mkdir()
        make_store(kind, order=order, failed=[1], directory=tmp_path / name).close()
    for file in ("samples.safetensors", "rows.arrow", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_became_of_a_sample_is_true_of_rows_that_come_later(kind: str) -> None:
    with StoreWriter(SPECS[kind]) as writer:
        add(writer, [0, 1])
        writer.loaded(0, writer.put(0, SAMPLES[kind][0]))
        writer.failed(not_found(1))
        assert (writer.num_loaded, writer.num_unique) == (1, 2)
        add(writer, NUMBERS[2:], start=2)
        assert (writer.num_loaded, writer.num_unique, writer.num_rows) == (3, 4, 8)
        assert [writer.is_done(slot) for slot in range(8)] == [number == 0 for number in NUMBERS]
        for number in (3, 2):
            writer.loaded(FIRSTS[number], writer.put(FIRSTS[number], SAMPLES[kind][number]))
        assert writer.num_loaded == 6
        assert writer.num_bytes == sum(SAMPLES[kind][number].nbytes for number in (0, 2, 3))
        assert [failure.index for failure in writer.failures()] == [1, 5]
        with writer.finish() as store:
            check(store, kind, failed=[1])


def test_a_store_without_repeats_says_nothing_of_them(tmp_path: Path) -> None:
    """Whoever numbers rows that do not repeat writes what was always written: older versions read it."""
    for name, numbers in (("numbered", np.arange(3)), ("not", None)):
        (tmp_path / name).mkdir()
        with StoreWriter(IMAGE_SPEC, directory=tmp_path / name) as writer:
            writer.add_rows(make_rows([("",)] * 3), numbers)
            for slot, image in enumerate(make_images(3)):
                writer.loaded(slot, writer.put(slot, image))
            writer.finish().close()
    for file in ("samples.safetensors", "rows.arrow", "manifest.json"):
        assert (tmp_path / "numbered" / file).read_bytes() == (tmp_path / "not" / file).read_bytes()
    assert json.loads((tmp_path / "not/manifest.json").read_text())["version"] == 1
    with open_store(tmp_path / "not") as store:
        slots = np.array([2, 0])
        assert store.table.sample_of(slots) is slots
        assert store.table.first_slots() is None


def test_a_store_with_repeats_is_of_the_second_version(tmp_path: Path) -> None:
    make_store("images", directory=tmp_path).close()
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_mending_the_first_row_mends_all_that_share_its_sample(tmp_path: Path, kind: str) -> None:
    with make_store(kind, failed=[1, 2]) as store:
        save_store(store, tmp_path)
    for place in (None, tmp_path):
        with make_store(kind, failed=[1, 2]) if place is None else open_store(place) as store:
            check(store, kind, failed=[1, 2])
            with StoreWriter(SPECS[kind], mend=store, directory=place) as writer:
                assert [writer.is_done(slot) for slot in FIRSTS] == [True, False, False, True]
                writer.loaded(1, writer.put(1, SAMPLES[kind][1]))
                with writer.finish() as mended:
                    check(mended, kind, failed=[2])
    with open_store(tmp_path) as store:
        check(store, kind, failed=[2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_sample_is_found_in_all_its_rows(tmp_path: Path, kind: str) -> None:
    with make_store(kind) as store:
        store.samples.write(b"\xaa\xbb", store._place(2)[0])
        assert store.verify() == [3, 4]


@pytest.mark.parametrize("num_rows", [0, 1, 3, 5, 8])
def test_only_the_first_rows_are_kept_with_the_samples_that_they_have(num_rows: int) -> None:
    table = TableWriter()
    table.add(make_rows([(f"caption {i}",) for i in range(8)]), np.array(NUMBERS))
    for number in range(3):
        table.loaded(number, 100 + number)
    table.failed(3, not_found(6))
    table.truncate(num_rows)
    numbers = NUMBERS[:num_rows]
    assert (table.num_rows, table.num_unique) == (num_rows, len(set(numbers)))
    rows = RowTable(memoryview(table.to_buffer()))
    assert rows.checksum.tolist() == [0 if number == 3 else 100 + number for number in numbers]
    assert (rows.samples is None) == (numbers == sorted(set(numbers)))
    assert rows.sample_of(np.arange(num_rows)).tolist() == numbers
    assert [failure.index for failure in rows.failures()] == ([6] if num_rows == 8 else [])


@pytest.mark.parametrize("num_bytes", [0, 1, 2, 3, 4])
def test_what_fits_counts_each_sample_once(num_bytes: int) -> None:
    """So many samples, and so the rows before the first that has another."""
    with StoreWriter(IMAGE_SPEC) as writer:
        add(writer)
        for number, slot in enumerate(FIRSTS):
            writer.loaded(slot, writer.put(slot, SAMPLES["images"][number]))
        rows_bytes, image_bytes = writer.rows_nbytes(), 8 * 6 * 3
        # far more than the rows that come with them, were these not about as large in this small store
        empty = TableWriter().to_buffer().size
        for_rows = (rows_bytes - empty) / 8
        room = empty + 4096 + num_bytes * image_bytes
        kept = writer.keep_what_fits(int(room + 8 * for_rows))
        ends = [for_rows * (slot + 1) + image_bytes * len(set(NUMBERS[: slot + 1])) for slot in range(8)]
        assert kept == sum(end <= num_bytes * image_bytes + 8 * for_rows for end in ends)
        with writer.finish() as store:
            assert store.num_samples == kept
            assert store.num_unique == len(set(NUMBERS[:kept]))


@pytest.mark.parametrize("num_done", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_build_goes_on_where_another_was_broken_off(tmp_path: Path, kind: str, num_done: int) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()

    def break_off() -> None:
        with StoreWriter(SPECS[kind], directory=tmp_path / "broken") as writer:
            add(writer)
            for number in [2, 0, 3][:num_done]:
                writer.loaded(FIRSTS[number], writer.put(FIRSTS[number], SAMPLES[kind][number]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert num_journaled(tmp_path / "broken") == num_done
    if num_done:
        with Journal(tmp_path / "broken") as journal:
            assert journal.records()["slot"].tolist() == [FIRSTS[number] for number in [2, 0, 3][:num_done]]
    with StoreWriter(SPECS[kind], directory=tmp_path / "broken") as writer:
        for start in range(8):  # row by row
            add(writer, NUMBERS[start : start + 1], start=start)
        done = [2, 0, 3][:num_done]
        assert [writer.is_done(slot) for slot in range(8)] == [number in done for number in NUMBERS]
        for number in set(range(4)) - set(done):
            writer.loaded(FIRSTS[number], writer.put(FIRSTS[number], SAMPLES[kind][number]))
        writer.finish().close()
    make_store(kind, directory=tmp_path / "whole").close()
    for file in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_a_version_that_knew_no_repeats_is_taken_over_only_where_it_lies_right(
    tmp_path: Path, kind: str
) -> None:
    """Its journal names every row, and its pictures lie at the places of their rows."""

    def break_off() -> None:
        with StoreWriter(SPECS[kind], directory=tmp_path) as writer:
            writer.add_rows(make_rows([("",)] * 8))
            for slot in (0, 1, 3, 6, 7):
                writer.loaded(slot, writer.put(slot, SAMPLES[kind][NUMBERS[slot]]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    with StoreWriter(SPECS[kind], directory=tmp_path) as writer:
        add(writer)
        taken_over = [writer.is_done(slot) for slot in FIRSTS]
        assert taken_over == ([True, True, False, False] if kind == "images" else [True] * 4)
        assert writer.num_bytes == sum(SAMPLES[kind][number].nbytes for number in np.flatnonzero(taken_over))
        for number, is_there in enumerate(taken_over):
            if not is_there:
                writer.loaded(FIRSTS[number], writer.put(FIRSTS[number], SAMPLES[kind][number]))
        with writer.finish() as store:
            check(store, kind)


@pytest.mark.parametrize(
    "numbers", [[1, 0], [0, 2], [-1, 0], [0, 0, 2], [0, 10**12], [0, 1, 0, 3]], ids=lambda numbers: str(numbers)
)
def test_numbers_that_are_no_samples_are_refused(numbers: list[int]) -> None:
    """Or a batch would be gathered from memory that is another sample's."""
    table = TableWriter()
    table.add(make_rows([("",)] * len(numbers)))
    batch = pa.ipc.open_file(table.to_buffer()).get_batch(0)
    sink = pa.BufferOutputStream()
    schema = batch.schema.append(pa.field("sample", pa.int64()))
    with pa.ipc.new_file(sink, schema) as file:
        file.write_batch(pa.record_batch([*batch.columns, pa.array(numbers, pa.int64())], schema=schema))
    with pytest.raises(StoreError, match="its samples are not numbered"):
        RowTable(memoryview(sink.getvalue()))


@pytest.mark.parametrize("column", ["status", "checksum"])
def test_rows_that_do_not_agree_in_what_their_sample_is_are_refused(column: str) -> None:
    table = TableWriter()
    table.add(make_rows([("",)] * 3), np.array([0, 1, 0]))
    batch = pa.ipc.open_file(table.to_buffer()).get_batch(0)
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns[column] = pa.array([0, 0, 1], batch.schema.field(column).type)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(pa.record_batch(list(columns.values()), schema=batch.schema))
    with pytest.raises(StoreError, match="its samples are not numbered"):
        RowTable(memoryview(sink.getvalue()))


def test_a_file_with_fewer_samples_than_the_rows_have_is_refused(tmp_path: Path) -> None:
    make_store("images", directory=tmp_path).close()
    manifest = read_manifest(tmp_path)
    table = TableWriter()
    table.add(make_rows([("",)] * 8), np.array([0, 1, 2, 3, 4, 1, 3, 0]))
    (tmp_path / "rows.arrow").write_bytes(table.to_buffer())
    write_manifest(tmp_path, make_manifest(manifest.spec, 8, {}, has_repeats=True))
    with pytest.raises(StoreError, match=r"expected 'images' uint8 \(5, 6, 8, 3\), got 'images' uint8 \(4, 6, 8, 3\)"):
        open_store(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_another_dataset_are_refused(tmp_path: Path, kind: str) -> None:
    make_store(kind, directory=tmp_path).close()
    data = bytearray((tmp_path / "samples.safetensors").read_bytes())
    with open_store(tmp_path) as store:
        start = store._start_of_media
    data[start:] = bytes(255 - byte for byte in data[start:])
    (tmp_path / "samples.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match="belongs to another dataset"):
        open_store(tmp_path)


@pytest.mark.parametrize("spec", [IMAGE_SPEC, AUDIO_SPEC], ids=KINDS)
def test_to_put_a_sample_takes_a_descriptor_and_an_allocator_alone(spec: ImageSpec | AudioSpec) -> None:
    """So that another process can; and nothing is in the books before they are told."""
    kind = "images" if isinstance(spec, ImageSpec) else "clips"
    with StoreWriter(spec) as writer:
        add(writer)
        here = writer.places
        with Block(os.dup(here.block.fd)) as block, closing(SharedEnd(Block(os.dup(here.end.block.fd)))) as end:
            there = Places(block, here.image_bytes, here.is_clip, end)
            placed = [there.put(number, sample) for number, sample in enumerate(SAMPLES[kind])]
        assert (writer.num_bytes, writer.num_loaded) == (0, 0)
        assert [each.num_bytes for each in placed] == [sample.nbytes for sample in SAMPLES[kind]]
        for slot, each in zip(FIRSTS, placed, strict=True):
            writer.loaded(slot, each)
        with writer.finish() as store:
            check(store, kind)
