"""Several stores read as one, and samples with their rows on the way from one to another."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, Effort
from in_memory_datasets.store import Store, StoreWriter
from in_memory_datasets.store.parcels import Parcel, ParcelWriter, cut_parcel
from in_memory_datasets.store.pieces import Joined, Pieces
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_encoded_store, make_images, make_rows, make_store

IMAGES: list[Any] = [*make_images(5), None, *make_images(3, seed=1)]
CLIPS: list[Any] = [*make_clips([5, 30, 0, 8]), None, *make_clips([12, 1, 9, 7], seed=1)]
BYTES: list[Any] = [b"x" * n for n in (3, 50, 8, 1)] + [None] + [b"y" * n for n in (9, 4, 2, 5)]
FLOATS = AudioSpec(target_sr=100, max_duration=1.0)

KINDS: dict[str, Any] = {
    "images": lambda part: make_store(IMAGE_SPEC, IMAGES[part]),
    "clips": lambda part: make_store(AUDIO_SPEC, CLIPS[part]),
    "float clips": lambda part: make_store(FLOATS, [None if c is None else c / np.float32(9) for c in CLIPS[part]]),
    "encoded images": lambda part: make_encoded_store(IMAGE_SPEC, BYTES[part]),
    "encoded clips": lambda part: make_encoded_store(AUDIO_SPEC, BYTES[part], num_frames=7),
}
# Where the nine samples are cut into stores.
CUTS = {"one": (0, 9), "two": (0, 4, 9), "with an empty one": (0, 4, 4, 9)}


def make_pieces(kind: str, cuts: Sequence[int]) -> Pieces:
    parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
    return Pieces([KINDS[kind](part) for part in parts], [100 + np.arange(part.start, part.stop) for part in parts])


def sample_of(store: Store | Pieces, slot: int) -> bytes:
    return store.sample_at(store.table.number_of(slot)).tobytes()


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_read_as_the_one_store_they_are_cut_from(kind: str, cuts: Sequence[int]) -> None:
    """Samples, captions, statuses and lengths are those of one store, whatever it is cut into."""
    slots = np.array([8, 0, 3, 4, 3, 7])
    with KINDS[kind](slice(0, 9)) as whole, make_pieces(kind, cuts) as pieces:
        table, expected = pieces.table, whole.table
        assert (pieces.num_samples, pieces.num_unique, pieces.spec) == (9, 9, whole.spec)
        assert (table.status == expected.status).all()
        assert [sample_of(pieces, slot) for slot in range(9)] == [sample_of(whole, slot) for slot in range(9)]
        assert (table.num_captions(slots) == expected.num_captions(slots)).all()
        assert [table.caption(slots[i : i + 1])[0] for i in range(6)] == table.caption(slots)
        assert table.rows_of(slots).tolist() == (100 + slots).tolist()
        if whole.offsets is not None:
            assert pieces.offsets is not None
            for found, known in zip(pieces.clip_places(slots), whole.clip_places(slots), strict=True):
                assert (found == known).all()
        if whole.encoded is not None:
            assert [pieces.read_encoded(number) for number in (0, 3, 8)] == [BYTES[0], BYTES[3], BYTES[8]]
        assert pieces.verify() == []
        assert [failure.index for failure in table.failures()] == [100 + f.index for f in expected.failures()]
        report = pieces.report(Effort())
        assert (report.num_samples, report.num_ok, report.num_failed) == (9, 8, 1)
        assert report.by_reason == {"not_found": 1}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_parcel_holds_what_was_asked_for(kind: str, cuts: Sequence[int]) -> None:
    """Parcels cut from any pieces, in any order and pickled on the way, make a store of just these samples."""
    slots = np.array([8, 0, 5, 4, 1, 8])
    with make_pieces(kind, cuts) as pieces:
        parcels = [pickle.loads(pickle.dumps(cut_parcel(pieces, part), protocol=5)) for part in (slots[:2], slots[2:])]
        encoded = pieces.encoded is not None
        with ParcelWriter(pieces.spec, encoded=encoded, num_rows=6) as writer:
            for parcel in parcels:
                writer.add(parcel)
            store = writer.finish()
        with store:
            assert store.verify() == []
            assert [sample_of(store, place) for place in range(6)] == [sample_of(pieces, slot) for slot in slots]
            assert store.table.caption(np.arange(6)) == pieces.table.caption(slots)
            assert [failure.index for failure in store.table.failures()] == [2 if kind == "images" else 3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_parcel_of_nothing_makes_an_empty_store(kind: str) -> None:
    """No samples are a store too."""
    with make_pieces(kind, (0, 4, 9)) as pieces:
        parcel = cut_parcel(pieces, np.zeros(0, np.int64))
        with ParcelWriter(pieces.spec, encoded=pieces.encoded is not None, num_rows=0) as writer:
            writer.add(parcel)
            with writer.finish() as store:
                assert store.num_samples == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_that_is_altered_on_the_way_is_refused(kind: str) -> None:
    """A parcel one byte of which has changed is a StoreError that names the sample's source."""
    with make_pieces(kind, (0, 4, 9)) as pieces:
        parcel = cut_parcel(pieces, np.array([1, 8]))
        data = parcel.data.copy()
        data[0] ^= 1
        with (
            ParcelWriter(pieces.spec, encoded=pieces.encoded is not None, num_rows=2) as writer,
            pytest.raises(StoreError, match=r"/data/1\.bin differs from its checksum"),
        ):
            writer.add(replace(parcel, data=data))


def test_more_or_fewer_samples_than_expected_are_refused() -> None:
    """A store is made of as many samples as were to come."""
    with make_pieces("images", (0, 9)) as pieces, ParcelWriter(IMAGE_SPEC, encoded=False, num_rows=3) as writer:
        parcel: Parcel = cut_parcel(pieces, np.array([1, 2]))
        writer.add(parcel)
        with pytest.raises(StoreError, match="2 samples have come, expected 3"):
            writer.finish()
        with pytest.raises(StoreError, match="4 samples have come, expected 3"):
            writer.add(parcel)


@pytest.mark.parametrize("num_slots", [0, 1, 64, 65, 300])
def test_captions_come_from_the_row_s_own_store(num_slots: int) -> None:
    """Of few rows and of many, of rows with none, one or several captions, and by number: those that were put in."""
    captions = [tuple(f"{number} of row {row}, ü" for number in range(row % 4)) for row in range(9)]
    parts = [slice(0, 4), slice(4, 5), slice(5, 9)]
    pieces = Pieces(
        [make_store(IMAGE_SPEC, make_images(9)[part], captions=captions[part]) for part in parts],
        [np.arange(part.start, part.stop) for part in parts],
    )
    draw = np.random.default_rng(num_slots)
    slots = draw.integers(0, 9, num_slots)
    numbers = draw.integers(0, 12, num_slots) % np.maximum(slots % 4, 1)
    with pieces:
        table = pieces.table
        assert table.caption(slots) == [(*captions[slot], "")[0] for slot in slots]
        expected = [
            dict(enumerate(captions[slot])).get(number, "") for slot, number in zip(slots, numbers, strict=True)
        ]
        assert table.caption(slots, numbers) == expected
        assert [table.captions(slot) for slot in range(9)] == [list(texts) for texts in captions]


@pytest.mark.parametrize("spec", [IMAGE_SPEC, AUDIO_SPEC])
def test_no_pieces_are_a_dataset_of_nothing(spec: Any) -> None:
    """Where a node holds nothing yet there is nothing to serve, to tell of and to save; and that is no error."""
    nothing = np.zeros(0, np.int64)
    with Pieces([], [], spec) as pieces:
        table = pieces.table
        assert (len(table.status), pieces.num_samples, pieces.num_unique, pieces.nbytes) == (0, 0, 0, 0)
        assert table.caption(nothing) == table.failures() == pieces.verify() == []
        assert pieces.report(Effort()).num_samples == 0
        with pickle.loads(pickle.dumps(pieces)) as again:
            assert again.spec == spec
        parcel = cut_parcel(pieces, nothing)
        with ParcelWriter(spec, encoded=False, num_rows=0) as writer:
            writer.add(parcel)
            with writer.finish() as store:
                assert store.num_samples == 0


def test_rows_that_share_a_sample_are_parted_on_the_way() -> None:
    """Where rows of the pieces share samples, each row of a parcel has its own."""
    with StoreWriter(IMAGE_SPEC) as writer:
        writer.add_rows(make_rows([(f"caption {i}",) for i in range(4)]), np.array([0, 1, 0, 1]))
        for slot in (0, 1):
            writer.loaded(slot, writer.put(slot, IMAGES[slot]))
        repeated = writer.finish()
    other = make_store(IMAGE_SPEC, IMAGES[2:4])
    with Pieces([repeated, other], [np.arange(4), np.arange(4, 6)]) as pieces:
        assert pieces.table.sample_of(np.arange(6)).tolist() == [0, 1, 0, 1, 2, 3]
        firsts = pieces.table.first_slots()
        assert firsts is not None
        assert firsts.tolist() == [0, 1, 4, 5]
        with ParcelWriter(IMAGE_SPEC, encoded=False, num_rows=4) as writer:
            writer.add(cut_parcel(pieces, np.array([5, 2, 0, 3])))
            with writer.finish() as store:
                assert store.num_unique == 4
                assert [sample_of(store, i) for i in range(4)] == [IMAGES[i].tobytes() for i in (3, 0, 0, 1)]


def test_pieces_of_different_kinds_are_refused() -> None:
    """Clips do not go with pictures, nor encoded samples with decoded ones."""
    numbers = [np.arange(9)] * 2
    with closing(KINDS["images"](slice(0, 9))) as images, closing(KINDS["clips"](slice(0, 9))) as clips:
        with pytest.raises(StoreError, match="different kinds"):
            Pieces([images, clips], numbers)
        with (
            closing(KINDS["encoded images"](slice(0, 9))) as encoded,
            pytest.raises(StoreError, match="one storage for all"),
        ):
            Pieces([images, encoded], numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_pickled_with_their_data(kind: str) -> None:
    """Pickled plainly, pieces carry all they hold."""
    with make_pieces(kind, (0, 4, 9)) as pieces:
        data = pickle.dumps(pieces)
        expected = [sample_of(pieces, slot) for slot in range(9)]
    with pickle.loads(data) as again:
        assert [sample_of(again, slot) for slot in range(9)] == expected
        assert again.table.row_numbers.tolist() == list(range(100, 109))


@pytest.mark.parametrize("lengths", [(4, 2), (2, 4), (1, 1, 3, 1)])
def test_joined_arrays_are_read_as_one(lengths: tuple[int, ...]) -> None:
    """Rows and runs of several arrays are those of one, whichever is the largest; a run lies within one of them."""
    parts = np.split(np.arange(18).reshape(6, 3), np.cumsum(lengths)[:-1])
    joined, whole = Joined(parts), np.concatenate(parts)
    assert (len(joined), joined.shape, joined.nbytes) == (6, (6, 3), whole.nbytes)
    out = np.empty((5, 3), whole.dtype)
    for numbers in ([0, 5, 2, 4, 0], [3, 2, 1, 0, 0], [5, 4, 5, 4, 5], [1, 2, 3, 4, 5]):
        for cut in range(6):
            out[:] = -1
            copy = joined.copier(np.array(numbers), out)
            copy(slice(cut, 5))
            assert (out[:cut] == -1).all()
            copy(slice(0, cut))
            assert (out == whole[numbers]).all()
    assert (joined[4] == whole[4]).all()
    start, stop = sum(lengths[:-1]), sum(lengths)
    assert (joined[start:stop] == whole[start:stop]).all()
    assert joined[6:6].shape == joined[4:4].shape == (0, 3)
