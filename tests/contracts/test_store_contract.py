"""What every store must do, wherever its bytes lie: one suite, run on each way to come by a store."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store import LOADED, Store, StoreWriter, open_store, save_store
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_images, make_store

IMAGES = [*make_images(3), None, *make_images(1, seed=1)]
CLIPS = [*make_clips([5, 0, 70]), None, *make_clips([33], seed=1)]
CAPTIONS = [("a",), ("ä", "日本", ""), (), ("d " * 999,), ("e\n\t",)]


class StoreContract(ABC):
    @abstractmethod
    def come_by(self, store: Store, directory: Path) -> Store:
        """Turn a store that was just written into one come by in another way."""

    @pytest.fixture
    def images(self, tmp_path: Path) -> Iterator[Store]:
        with self.come_by(make_store(IMAGE_SPEC, IMAGES, captions=CAPTIONS), tmp_path) as store:
            yield store

    @pytest.fixture
    def clips(self, tmp_path: Path) -> Iterator[Store]:
        with self.come_by(make_store(AUDIO_SPEC, CLIPS, captions=CAPTIONS), tmp_path) as store:
            yield store

    def test_each_slot_holds_the_image_of_its_row(self, images: Store) -> None:
        for slot, image in enumerate(IMAGES):
            if image is not None:
                np.testing.assert_array_equal(images.sample(slot), image)

    def test_each_slot_holds_the_clip_of_its_row_in_its_own_length(self, clips: Store) -> None:
        for slot, clip in enumerate(CLIPS):
            expected = np.empty(0, np.int16) if clip is None else clip
            np.testing.assert_array_equal(clips.sample(slot), expected)
        assert clips.frames is not None
        assert len(clips.frames) == sum(len(clip) for clip in CLIPS if clip is not None)

    def test_captions_are_unaltered(self, images: Store) -> None:
        assert [tuple(images.table.captions(slot)) for slot in range(5)] == CAPTIONS
        assert images.table.num_empty_captions == 1

    def test_a_failure_is_kept_with_all_that_is_known_of_it(self, clips: Store) -> None:
        (failure,) = clips.table.failures()
        assert (failure.index, failure.source, failure.stage, failure.reason, failure.attempts) == (
            3,
            "/data/3.bin",
            "fetch",
            "not_found",
            1,
        )

    def test_samples_cannot_be_altered_by_accident(self, images: Store) -> None:
        assert images.images is not None
        with pytest.raises(ValueError, match="read-only"):
            images.images[0] = 0

    def test_checksums_hold(self, images: Store, clips: Store) -> None:
        assert images.verify() == []
        assert clips.verify() == []

    def test_an_altered_sample_is_found(self, images: Store) -> None:
        images.samples.write(b"\0\1\2\3", images.samples.nbytes - 4)
        assert images.verify() == [4]

    def test_mending_fills_the_gap_and_leaves_the_rest(self, images: Store, clips: Store) -> None:
        for store, samples, new in ((images, IMAGES, make_images(1, seed=2)[0]), (clips, CLIPS, make_clips([9])[0])):
            with StoreWriter(store.spec, mend=store, directory=store.directory) as writer:
                writer.loaded(3, writer.put(3, new))
                mended = writer.finish()
            with mended:
                for slot, sample in enumerate([*samples[:3], new, samples[4]]):
                    np.testing.assert_array_equal(mended.sample(slot), sample)
                assert mended.verify() == []
                assert mended.table.failures() == []
                assert tuple(mended.table.captions(1)) == CAPTIONS[1]

    def test_a_closed_store_says_so(self, images: Store) -> None:
        images.close()
        images.close()
        with pytest.raises(StoreError, match="closed"):
            _ = images.table

    def test_views_handed_out_outlive_the_store(self, images: Store) -> None:
        view = images.sample(0)
        images.close()
        np.testing.assert_array_equal(view, IMAGES[0])


class TestStoreInMemory(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        return store


class TestStoreWrittenIntoADirectory(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        samples = [
            store.sample(slot) if status == LOADED else None for slot, status in enumerate(store.table.status.tolist())
        ]
        captions = [tuple(store.table.captions(slot)) for slot in range(store.num_samples)]
        with store:
            return make_store(store.spec, samples, captions=captions, directory=directory)


class TestStoreSavedAndOpened(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        with store:
            save_store(store, directory)
        return open_store(directory)


class TestStorePickled(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        with store:
            data = pickle.dumps(store)
        clone: Store = pickle.loads(data)
        return clone


class TestStorePickledByAnOldProtocol(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        with store:
            data = pickle.dumps(store, protocol=2)
        clone: Store = pickle.loads(data)
        return clone


class TestStoreSentAsAHandle(StoreContract):
    def come_by(self, store: Store, directory: Path) -> Store:
        data = bytes(ForkingPickler.dumps(store))
        assert len(data) < 4096
        clone: Store = pickle.loads(data)
        store.close()
        resource_sharer.stop(timeout=5)  # multiprocessing's own thread, which handed the descriptors over
        return clone
