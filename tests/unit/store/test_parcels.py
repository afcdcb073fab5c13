"""Stores that are made of parcels: what is refused on the way, and what lies in a directory afterwards."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_memory_datasets.build.moving import save
from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import Effort
from in_memory_datasets.store import LOADED, Pieces, Store, open_store, save_store
from in_memory_datasets.store.parcels import Parcel, ParcelWriter, cut_parcel, save_pieces
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_encoded_store, make_images, make_store

COMPLETE = ["manifest.json", "rows.arrow", "samples.safetensors"]
KINDS: dict[str, Callable[..., Store]] = {
    "images": lambda **kwargs: make_store(IMAGE_SPEC, [*make_images(3), None], **kwargs),
    "clips": lambda **kwargs: make_store(AUDIO_SPEC, [*make_clips([5, 0, 7]), None], **kwargs),
    "encoded images": lambda **kwargs: make_encoded_store(IMAGE_SPEC, [b"abc", b"de", b"f", None], **kwargs),
    "encoded clips": lambda **kwargs: make_encoded_store(
        AUDIO_SPEC, [b"abc", b"de", b"f", None], num_frames=7, **kwargs
    ),
}


def make_pieces(kind: str) -> Pieces:
    return Pieces([KINDS[kind](), KINDS[kind]()], [np.arange(4), np.arange(10, 14)])


def samples_of(store: Store | Pieces) -> list[bytes]:
    return [store.sample_at(store.table.number_of(slot)).tobytes() for slot in range(store.num_samples)]


def make_of(parcel: Parcel, store: Store | Pieces, directory: Path | None = None) -> Store:
    encoded, num_rows = store.encoded is not None, len(parcel.sizes)
    with ParcelWriter(store.spec, encoded=encoded, num_rows=num_rows, directory=directory) as writer:
        writer.add(parcel)
        return writer.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_a_parcel_is_cut_from_a_store_by_itself(kind: str) -> None:
    """A store need not be made a piece of anything to be sent on, failed rows and all."""
    with KINDS[kind]() as store, make_of(cut_parcel(store, np.arange(4)), store) as copy:
        assert samples_of(copy) == samples_of(store)
        assert copy.table.status.tolist() == store.table.status.tolist()
        assert copy.table.failures() == store.table.failures()


def test_the_samples_of_a_parcel_are_not_copied_by_a_pickle() -> None:
    """By protocol 5 samples and rows are handed on as buffers, and the pickle itself has none of their bytes."""
    with make_pieces("images") as pieces:
        parcel, buffers = cut_parcel(pieces, np.array([0, 5])), []
        data = pickle.dumps(parcel, protocol=5, buffer_callback=buffers.append)
        assert parcel.data.tobytes() not in data
        again = pickle.loads(data, buffers=buffers)
        assert np.shares_memory(again.data, parcel.data)
        assert again.rows.equals(parcel.rows)


@pytest.mark.parametrize("what", ["sizes", "num_frames"])
def test_a_parcel_whose_lengths_do_not_fit_is_refused(what: str) -> None:
    """A picture without its bytes, or a clip with those of its neighbour, is a StoreError that names its source."""
    with closing(KINDS["images" if what == "sizes" else "clips"]()) as store:
        parcel = cut_parcel(store, np.array([0, 2]))
        if what == "sizes":
            wrong = replace(parcel, sizes=np.array([0, parcel.sizes[1]]), data=parcel.data[int(parcel.sizes[0]) :])
        else:
            wrong = replace(parcel, num_frames=np.array([6, 6]))
        with pytest.raises(StoreError, match=r"/data/0\.bin differs from its checksum"):
            make_of(wrong, store)


def test_a_failed_row_brings_no_bytes() -> None:
    """Bytes that a row is said to have although it failed are refused."""
    with closing(KINDS["encoded images"]()) as store:
        parcel = cut_parcel(store, np.array([0, 3]))
        with pytest.raises(StoreError, match=r"/data/3\.bin differs"):
            make_of(replace(parcel, sizes=np.array([3, 1]), data=np.append(parcel.data, np.uint8(0))), store)


def test_a_store_of_both_forms_is_not_cut() -> None:
    """Where only the first samples lie decoded none are sent, instead of others than were asked for."""
    with (
        closing(make_encoded_store(IMAGE_SPEC, [b"a", b"b"], num_decoded=1)) as store,
        pytest.raises(StoreError, match="partly decoded"),
    ):
        cut_parcel(store, np.array([0, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_of_parcels_in_a_directory_is_complete(tmp_path: Path, kind: str) -> None:
    """What is written into a directory can be opened there, and replaces an older store as a whole."""
    KINDS[kind](directory=tmp_path).close()
    with make_pieces(kind) as pieces, open_store(tmp_path) as old:
        before = samples_of(old)
        with make_of(cut_parcel(pieces, np.arange(8)), pieces, tmp_path) as made:
            assert made.directory == tmp_path
            assert sorted(path.name for path in tmp_path.iterdir()) == COMPLETE
            with open_store(tmp_path) as opened:
                assert samples_of(opened) == samples_of(made) == samples_of(pieces)
                assert opened.verify() == []
        assert samples_of(old) == before


def test_what_is_not_finished_leaves_a_directory_as_it_was(tmp_path: Path) -> None:
    """A writer that is broken off leaves the older store, and none of its own files."""
    with make_pieces("clips") as pieces:
        KINDS["clips"](directory=tmp_path).close()
        with ParcelWriter(AUDIO_SPEC, encoded=False, num_rows=8, directory=tmp_path) as writer:
            writer.add(cut_parcel(pieces, np.arange(2)))
            with pytest.raises(StoreError, match="2 samples have come, expected 8"):
                writer.finish()
        assert sorted(path.name for path in tmp_path.iterdir()) == COMPLETE
        with open_store(tmp_path) as store:
            assert store.num_samples == 4


def test_a_directory_with_other_files_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Parcels are never put beside somebody's files."""
    (tmp_path / "thesis.tex").write_text("")
    with make_pieces("images") as pieces, pytest.raises(StoreError, match=r"thesis\.tex"):
        save_pieces(pieces, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_saved_as_one_store(tmp_path: Path, kind: str) -> None:
    """All rows are there in the order of the pieces, numbered anew, and every byte of theirs is told of."""
    told: list[int] = []
    with make_pieces(kind) as pieces:
        save_pieces(pieces, tmp_path, on_progress=told.append)
        with open_store(tmp_path) as saved:
            assert samples_of(saved) == samples_of(pieces)
            assert saved.table.caption(np.arange(8)) == pieces.table.caption(np.arange(8))
            assert [failure.index for failure in saved.table.failures()] == [3, 7]
            is_loaded = pieces.table.status == LOADED
            assert sum(told) == sum(
                len(each) for each, there in zip(samples_of(pieces), is_loaded, strict=True) if there
            )


def test_a_single_piece_is_saved_as_the_store_it_is(tmp_path: Path) -> None:
    """Of one piece the files are those of its store, to the bit."""
    with make_pieces("images") as pieces:
        save_pieces(Pieces(pieces.stores[:1], [np.arange(4)]), tmp_path / "pieces")
        save_store(pieces.stores[0], tmp_path / "store")
    for name in COMPLETE:
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "store" / name).read_bytes()


def test_an_altered_sample_is_not_saved(tmp_path: Path) -> None:
    """Pieces with a damaged sample are refused, and the older store stays."""
    with make_pieces("images") as pieces, make_pieces("images") as older:
        save_pieces(older, tmp_path)
        pieces.stores[1].samples.write(b"#", pieces.stores[1].samples.nbytes - 2 * 8 * 6 * 3)
        assert pieces.verify() == [12]
        with pytest.raises(StoreError, match="differs from its checksum"):
            save(pieces, tmp_path, progress=False)
        with open_store(tmp_path) as saved:
            assert samples_of(saved) == samples_of(older)


def test_pieces_are_published(tmp_path: Path) -> None:
    """At a URL they are one store too."""
    with make_pieces("clips") as pieces:
        save(pieces, (tmp_path / "there").as_uri(), progress=False)
        with open_store(tmp_path / "there") as published:
            assert samples_of(published) == samples_of(pieces)


def mark(pieces: Pieces, number: int) -> None:
    """Alter a picture of the second piece in place."""
    samples = pieces.stores[1].samples
    samples.write(b"\x07" * 8, samples.nbytes - 4 * 8 * 6 * 3)
    assert pieces.images[number].tobytes()[:8] == b"\x07" * 8
    assert pieces.table.row_numbers.tolist() == [*range(4), *range(10, 14)]


def test_pieces_go_to_a_worker_process_as_handles() -> None:
    """Another process has the same memory, so that what one writes there is seen by both."""
    with make_pieces("images") as pieces:
        process = multiprocessing.get_context("spawn").Process(target=mark, args=(pieces, 4))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert pieces.images[4].tobytes()[:8] == b"\x07" * 8


def test_rows_of_pieces_say_where_they_come_from() -> None:
    """Sources and checksums are those of the store that each row lies in."""
    with make_pieces("clips") as pieces:
        table, first = pieces.table, pieces.stores[0].table
        assert [table.source(slot) for slot in (0, 3, 4)] == ["/data/0.bin", "/data/3.bin", "/data/0.bin"]
        assert table.checksum.tolist() == first.checksum.tolist() * 2


def test_what_has_no_room_in_memory_is_reported_as_on_disk(tmp_path: Path) -> None:
    """Of pieces that are files, as many samples as do not fit are counted, and of those in memory none."""
    stores: list[Any] = [KINDS["images"](directory=tmp_path), KINDS["images"]()]
    with Pieces(stores, [np.arange(4), np.arange(4, 8)]) as pieces:
        found = [
            (report.num_decoded, report.num_on_disk)
            for available in (None, 0, 10 * pieces.nbytes)
            for report in [pieces.report(Effort(), bytes_available=available)]
        ]
        assert found == [(6, 0), (3, 3), (6, 0)]
