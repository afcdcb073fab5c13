"""What the stores of `v2` hold, whose rows share samples, and how they were written: run once; never again for v2."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.store import HEADER_BYTES
from tests.golden.make_v1 import SIZE, clip_rows, picture

V2 = Path(__file__).parent / "v2"
# Which picture or clip each row has, 1 being one that fails; and the number of the sample that it has.
ROWS = [3, 1, 3, 0, 4, 0, 1, 3, 5]
SAMPLES = [0, 1, 0, 2, 3, 2, 1, 0, 4]
UNIQUE = [3, 1, 0, 4, 5]
CAPTIONS = [[f"row {i}"] if i % 3 else [f"row {i}", "noch eine"] for i in range(len(ROWS))]
NUM_DECODED = 3  # of the mixtures
IMAGES: dict[str, Any] = {"image_size": SIZE, "progress": False}
CLIPS: dict[str, Any] = {"target_sr": 8_000, "max_duration": 1.0, "dtype": "int16", "progress": False}


def image_rows() -> list[dict[str, Any]]:
    """Give rows of pictures."""
    sources = ["/data/gone.png" if number == 1 else png(number) for number in ROWS]
    return [{"image_url": source, "caption": texts} for source, texts in zip(sources, CAPTIONS, strict=True)]


def png(number: int) -> bytes:
    """Write a picture of v1 as a file."""
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def repeated_clip_rows() -> list[dict[str, Any]]:
    """Give rows of clips of v1."""
    rows = clip_rows()
    return [{**rows[number], "caption": texts} for number, texts in zip(ROWS, CAPTIONS, strict=True)]


def write() -> None:
    """Write all stores."""
    kinds: list[tuple[Any, list[dict[str, Any]], dict[str, Any], str]] = [
        (InMemoryImageTextDataset, image_rows(), IMAGES, "images"),
        (InMemoryAudioTextDataset, repeated_clip_rows(), CLIPS, "clips"),
    ]
    for cls, rows, arguments, name in kinds:
        with cls(rows, **arguments) as decoded, cls(rows, storage="encoded", **arguments) as encoded:
            decoded.save(V2 / name)
            encoded.save(V2 / f"encoded_{name}")
            stores = decoded._store, encoded._store
            sizes = [[store.sample_at(number).nbytes for number in range(len(UNIQUE))] for store in stores]
            # The memory in which the first samples lie decoded, one of which failed, and the last two encoded.
            beside = stores[1].rows.nbytes + HEADER_BYTES + 2 * 8 * (len(UNIQUE) + 1)
            limit = beside + sum(sizes[0][:NUM_DECODED]) + sum(sizes[1][NUM_DECODED:])
        with cls(rows, storage="auto", memory_limit=limit, **arguments) as mixture:
            mixture.save(V2 / f"mixed_{name}")


if __name__ == "__main__":
    write()
