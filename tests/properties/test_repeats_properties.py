"""A load that loads each source once serves what one serves that loads every row's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.build.duplicates import SampleNumbers
from in_memory_datasets.schema import Row, Source

NUM_SOURCES = 5


def media(kind: str, number: int) -> bytes:
    """Make a file; the last one is none."""
    if number == NUM_SOURCES - 1:
        return b"nothing"
    file = io.BytesIO()
    draw = np.random.default_rng(number)
    if kind == "images":
        Image.fromarray(draw.integers(0, 256, (6, 5, 3), np.uint8)).save(file, "PNG")
    else:
        frames = draw.uniform(-1, 1, 50 + 30 * number).astype(np.float32)
        soundfile.write(file, frames, 8_000, format="WAV")
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["images", "clips"]),
    storage=st.sampled_from(["decoded", "encoded", "auto"]),
    on_error=st.sampled_from(["placeholder", "skip"]),
    numbers=st.lists(st.integers(0, NUM_SOURCES - 1), min_size=1, max_size=14).filter(lambda drawn: min(drawn) < 4),
    positions=st.lists(st.integers(0, 99), max_size=9),
)
def test_batches_are_those_of_a_load_that_shares_nothing(
    kind: str, storage: str, on_error: str, numbers: list[int], positions: list[int]
) -> None:
    column = "image_url" if kind == "images" else "audio"
    cls: Any = InMemoryImageTextDataset if kind == "images" else InMemoryAudioTextDataset
    shape: dict[str, Any] = {"image_size": (5, 6)} if kind == "images" else {"target_sr": 8_000, "max_duration": 0.02}
    arguments = {"storage": storage, "on_error": on_error, "progress": False, "num_threads": 1, **shape}
    data = [media(kind, number) for number in range(NUM_SOURCES)]
    # With bytes behind the end, which no decoder of these looks at, the same file is another source.
    shared = [{column: data[number], "caption": f"row {i}"} for i, number in enumerate(numbers)]
    alone = [{**row, column: row[column] + bytes(i + 1)} for i, row in enumerate(shared)]
    with cls(shared, **arguments) as one, cls(alone, **arguments) as other:
        assert one._store.num_unique == len(set(numbers))
        assert other._store.num_unique == len(numbers)
        assert len(one) == len(other)
        assert one.failed_indices == other.failed_indices
        indices = [position % len(one) for position in positions]
        served = one.__getitems__(indices), other.__getitems__(indices)
        tensors = ["images"] if kind == "images" else ["audio", "lengths"]
        for name in (*tensors, "indices", "valid"):
            assert torch.equal(getattr(served[0], name), getattr(served[1], name))
        assert served[0].captions == served[1].captions
        assert one.verify() == []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["url", "path", "fsspec", "bytes"]), st.text(max_size=2)), max_size=9))
)
def test_numbers_are_those_of_first_appearance(batches: list[list[tuple[Any, str]]]) -> None:
    numbers, known = SampleNumbers(), dict[tuple[str, str], int]()
    for batch in batches:
        rows = [
            Row(i, Source(kind, text.encode() if kind == "bytes" else text), ()) for i, (kind, text) in enumerate(batch)
        ]
        assert numbers.of(rows).tolist() == [known.setdefault(key, len(known)) for key in batch]
