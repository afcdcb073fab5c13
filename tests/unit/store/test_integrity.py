"""Whatever is done to the files of a store: it opens and gives what was saved, or says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store import Store, open_store, save_store
from in_memory_datasets.store.manifest import digest
from tests.making import AUDIO_SPEC, IMAGE_SPEC, damage, make_clips, make_encoded_store, make_images, make_store

FILES = ("manifest.json", "samples.safetensors", "rows.arrow")
MAKERS: dict[str, Callable[[], Store]] = {
    "images": lambda: make_store(IMAGE_SPEC, [*make_images(3), None]),
    "clips": lambda: make_store(AUDIO_SPEC, [*make_clips([3, 9, 1]), None]),
    "mixture": lambda: make_encoded_store(IMAGE_SPEC, [b"one", b"two two", None, b"four"], num_decoded=2),
}


def contents(store: Store) -> list[tuple[object, ...]]:
    """Give all that a store serves: captions and outcomes, and the bytes of each sample."""
    table = store.table
    return [
        (
            tuple(table.captions(slot)),
            int(table.status[slot]),
            table.source(slot),
            store.sample(slot).tobytes(),
            store.sample(slot).shape,
        )
        for slot in range(store.num_samples)
    ]


@pytest.fixture(params=MAKERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with MAKERS[request.param]() as store:
        save_store(store, tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("kind", MAKERS)
def test_ten_thousand_damaged_stores_are_refused_or_give_what_was_saved(kind: str, tmp_path: Path) -> None:
    """Never a crash, and never another sample, caption or outcome, without verify() saying so."""
    with MAKERS[kind]() as store:
        save_store(store, tmp_path)
        expected, spec = contents(store), store.spec
    whole = {name: (tmp_path / name).read_bytes() for name in FILES}
    draw = np.random.default_rng(0)
    num_opened = num_refused = 0
    for number in range(3400):
        name = FILES[number % 3]
        (tmp_path / name).write_bytes(damage(whole[name], draw))
        try:
            with open_store(tmp_path) as store:
                num_opened += 1
                found, bad = contents(store), set(store.verify())
                assert store.spec == spec
        except StoreError as error:
            num_refused += str(tmp_path) in str(error)
        else:
            assert len(found) == len(expected)
            for slot, (now, then) in enumerate(zip(found, expected, strict=True)):
                assert now[:3] == then[:3]
                assert now == then or slot in bad or then[1] != 1, f"sample {slot} is altered, and nobody says so"
        (tmp_path / name).write_bytes(whole[name])
    assert num_opened + num_refused == 3400
    assert num_opened > 50


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_store_is_refused(saved: Path, name: str, tmp_path: Path) -> None:
    captions = [("one",), ("two",), ("three",), ("four",)]
    with make_store(IMAGE_SPEC, make_images(4, seed=7), captions=captions) as other:
        save_store(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, saved / name)
    with pytest.raises(StoreError, match=str(saved)):
        open_store(saved)


def test_rows_of_another_dataset_of_the_same_shape_are_refused_by_their_checksum(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        with make_store(IMAGE_SPEC, make_images(3, seed=seed)) as store:
            save_store(store, tmp_path / name)
    shutil.copy(tmp_path / "other/rows.arrow", tmp_path / "one/rows.arrow")
    with pytest.raises(StoreError, match=r"rows\.arrow differs from its checksum .* belongs to another dataset"):
        open_store(tmp_path / "one")


def test_samples_of_another_dataset_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        with make_store(IMAGE_SPEC, make_images(9, seed=seed)) as store:
            save_store(store, tmp_path / name)
    shutil.copy(tmp_path / "other/samples.safetensors", tmp_path / "one/samples.safetensors")
    with pytest.raises(StoreError, match=r"samples\.safetensors belongs to another dataset: samples \[0, 4, 8\] all"):
        open_store(tmp_path / "one")


@pytest.mark.parametrize("missing", [{0, 4, 8}, {0, 1, 2, 3}, {4, 5, 6, 7, 8}, {1, 2, 3, 5, 6, 7, 8}], ids=str)
def test_failed_samples_are_none_of_those_that_are_looked_at(tmp_path: Path, missing: set[int]) -> None:
    def keep(seed: int, name: str) -> None:
        images = [None if i in missing else image for i, image in enumerate(make_images(9, seed=seed))]
        with make_store(IMAGE_SPEC, images) as store:
            save_store(store, tmp_path / name)

    keep(0, "one")
    keep(1, "other")
    with open_store(tmp_path / "one") as store:
        assert store.verify() == []
    shutil.copy(tmp_path / "other/samples.safetensors", tmp_path / "one/samples.safetensors")
    there = sorted(set(range(9)) - missing)
    with pytest.raises(StoreError, match=rf"samples \[{there[0]}, .*{there[-1]}\] all differ"):
        open_store(tmp_path / "one")


@pytest.mark.parametrize("num_samples", [0, 3])
def test_where_nothing_was_loaded_there_is_nothing_to_compare(tmp_path: Path, num_samples: int) -> None:
    with make_store(IMAGE_SPEC, [None] * num_samples) as store:
        save_store(store, tmp_path / "saved")
    with open_store(tmp_path / "saved") as store:
        assert (store.num_samples, store.verify()) == (num_samples, [])


def test_numbers_in_the_other_order_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["byteorder"] = "big"
    del manifest["checksum"]
    signed = {**manifest, "checksum": digest(json.dumps(manifest, sort_keys=True).encode())}
    whole = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(json.dumps(signed))
    with pytest.raises(StoreError, match=r"manifest\.json has numbers in big-endian order"):
        open_store(saved)
    (saved / "manifest.json").write_text(whole)
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(StoreError, match="this machine has numbers in big-endian order"):
        open_store(saved)


def test_a_directory_on_which_nothing_can_be_mapped_says_so(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(StoreError, match="cannot be mapped into memory: No such device; copy it to a local disk"):
        open_store(saved)
