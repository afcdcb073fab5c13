"""What makes a cached dataset another one: whatever would change its bytes, and nothing else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset, cache
from in_memory_datasets.schema import ImageSpec
from tests.making import make_images

SAME, OTHER = False, True

# Every argument of the constructors: another value for it, and whether that makes another store.
IMAGES: dict[str, tuple[Any, bool]] = {
    "img_col": ("thumbnail", OTHER),
    "txt_col": ("title", OTHER),
    "max_samples": (2, OTHER),
    "image_size": ((4, 5), OTHER),
    "resize": ("pad", OTHER),
    "captions": ("all", SAME),
    "on_error": ("skip", SAME),
    "output": ("numpy", SAME),
    "transform": (lambda image: image, SAME),
    "batch_transform": (lambda images: images, SAME),
    "storage": ("encoded", OTHER),
    "recompress": (("jpeg", 20), OTHER),
    "memory_limit": ("1GB", SAME),
    "lock_memory": (True, SAME),
    "fetch": (FetchOptions(timeout=1.0), SAME),
    "num_threads": (1, SAME),
    "progress": (True, SAME),
}
CLIPS: dict[str, tuple[Any, bool]] = {
    "audio_col": ("other", OTHER),
    "txt_col": ("title", OTHER),
    "max_samples": (2, OTHER),
    "target_sr": (50, OTHER),
    "max_duration": (0.5, OTHER),
    "dtype": ("int16", OTHER),
    "pad_to": ("max", SAME),
    "crop": ("random", OTHER),  # which keeps more of each clip
    "keep_duration": (2.0, OTHER),
    "captions": ("all", SAME),
    "on_error": ("skip", SAME),
    "output": ("numpy", SAME),
    "transform": (lambda clip: clip, SAME),
    "batch_transform": (lambda clips: clips, SAME),
    "storage": ("encoded", OTHER),
    "memory_limit": ("1GB", SAME),
    "lock_memory": (True, SAME),
    "fetch": (FetchOptions(timeout=1.0), SAME),
    "num_threads": (1, SAME),
    "progress": (True, SAME),
}
# What must stand beside an argument, so that it bears on anything.
BASES: dict[str, dict[str, Any]] = {
    "keep_duration": {"crop": "random"},
    "recompress": {"storage": "encoded", "image_size": (64, 64)},
}
NOT_ARGUMENTS_OF_THE_STORE = {"hf_dataset", "cache_dir", "wait"}


def image_rows() -> list[dict[str, Any]]:
    return [
        {"image_url": image, "thumbnail": image[:3].copy(), "caption": f"{i}", "title": f"t{i}"}
        for i, image in enumerate(make_images(3, ImageSpec((70, 80))))
    ]


def clip_rows() -> list[dict[str, Any]]:
    wave = {"array": np.linspace(-1, 1, 600, dtype=np.float32), "sampling_rate": 100}
    return [{"audio": wave, "other": {**wave, "sampling_rate": 200}, "caption": "", "title": "t"}] * 3


def build(cache_dir: Path, kind: str, **arguments: Any) -> None:
    arguments = {"cache_dir": cache_dir, "progress": False, **arguments}
    if kind == "images":
        InMemoryImageTextDataset(image_rows(), **{"image_size": (8, 6), **arguments}).close()
    else:
        InMemoryAudioTextDataset(clip_rows(), **{"target_sr": 100, "max_duration": 1.0, **arguments}).close()


@pytest.mark.parametrize(
    ("kind", "name"), [*(("images", name) for name in IMAGES), *(("clips", name) for name in CLIPS)]
)
def test_an_argument_makes_another_store_where_it_changes_its_bytes_and_only_there(
    tmp_path: Path, kind: str, name: str
) -> None:
    value, is_other = (IMAGES if kind == "images" else CLIPS)[name]
    base = {"keep_duration": {"crop": "random"}, "recompress": {"storage": "encoded", "image_size": (64, 64)}}.get(
        name, {}
    )
    build(tmp_path, kind, **base)
    build(tmp_path, kind, **{**base, name: value})
    names = {entry.fingerprint for entry in cache.entries(tmp_path)}
    assert len(names) == (2 if is_other else 1)
    contents = {
        b"".join((tmp_path / name / file).read_bytes() for file in ("samples.safetensors", "rows.arrow"))
        for name in names
    }
    assert len(contents) == len(names)


def test_every_argument_is_judged() -> None:
    for cls, table in ((InMemoryImageTextDataset, IMAGES), (InMemoryAudioTextDataset, CLIPS)):
        assert set(inspect.signature(cls).parameters) - NOT_ARGUMENTS_OF_THE_STORE == set(table)


@pytest.fixture
def table() -> datasets.Dataset:
    rows = [{"image_url": f"/nowhere/{i}.jpg", "caption": f"{i}", "unused": i} for i in range(6)]
    return datasets.Dataset.from_list(rows)


def test_the_selection_of_a_hub_dataset_counts(table: datasets.Dataset) -> None:
    from in_memory_datasets.rows import open_rows

    def identity(dataset: Any, max_samples: int | None = None) -> str | None:
        return open_rows(dataset, media_col="image_url", txt_col="caption", max_samples=max_samples).identity

    others = [
        table,
        table.select(range(4)),
        table.shuffle(seed=1),
        table.shuffle(seed=2),
        table.map(lambda row: {"caption": row["caption"] * 2}),
    ]
    assert len({identity(other) for other in others}) == len(others)
    assert identity(table, 6) == identity(table) != identity(table, 4)


def test_new_rules_of_decoding_make_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "images")
    monkeypatch.setattr("in_memory_datasets.build.loading.DECODE_RULES_VERSION", 99)
    build(tmp_path, "images")
    assert len(cache.entries(tmp_path)) == 2
