"""What the stores of `v1` hold, and how they were written: run once; never again for v1.

The stores `images` and `clips` are older than this script: they were written before manifests had checksums. All
others were written by it, and lie here to be opened by every version to come. A version that writes other bytes is a
reason to write new stores beside these, not to write these anew.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset

V1 = Path(__file__).parent / "v1"
SIZE = (24, 16)
CAPTIONS = [["first"], ["zweites", "deuxième"], [], ["四"], ["fifth"], ["last"]]


def picture(number: int, width: int = SIZE[0], height: int = SIZE[1]) -> NDArray[np.uint8]:
    """Draw a picture by numbers: 3 is noise, the others are smooth, and all differ."""
    y, x = np.mgrid[:height, :width]
    if number == 3:
        return (
            (np.arange(height * width * 3, dtype=np.uint64) ** 3 * 2_654_435_761 >> 13)
            .astype(np.uint8)
            .reshape(height, width, 3)
        )
    ramps = x * 160 // width + 10 * number, y * 160 // height + 40, (x * 80 // width + y * 80 // height)
    return np.stack(ramps, axis=2).astype(np.uint8)


def rough_picture() -> NDArray[np.uint8]:
    """Draw one of which a JPEG takes less than a PNG."""
    return picture(5) // 2 + picture(3) % 100


def tone(number: int) -> NDArray[np.int16]:
    """Make a clip by numbers: a ramp, full scale, a triangle, noise."""
    time = np.arange(400 + 100 * number)
    shapes = time, np.where(time % 50 < 25, 32_767, -32_768), np.abs(time % 80 - 40) * 500, time**3 * 40_503 % 20_011
    return shapes[number % 4].astype(np.int16)


def image_rows() -> list[dict[str, Any]]:
    """Give one row for each form that a picture is kept in, and one that fails."""
    rough = rough_picture().repeat(2, axis=0).repeat(2, axis=1)
    sources = [
        _file(picture(0), "PNG"),
        "/data/gone.png",
        _file(picture(2), "JPEG", quality=90),
        picture(3),  # noise, of which a PNG is larger: kept as PPM
        picture(4),  # no bytes of its own: kept as PNG
        _file(rough, "PNG"),  # larger than is served: recompressed, where that is asked for
    ]
    return [{"image_url": source, "caption": texts} for source, texts in zip(sources, CAPTIONS, strict=True)]


def clip_rows() -> list[dict[str, Any]]:
    """Give rows of clips, one of which fails."""
    rows = [{"audio": _clip(tone(number)), "caption": texts} for number, texts in enumerate(CAPTIONS)]
    rows[1]["audio"] = "/data/gone.wav"
    return rows


def _file(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _clip(frames: NDArray[np.int16]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, frames, 8_000, format="WAV")
    return file.getvalue()


def write() -> None:
    """Write all stores but the two oldest."""
    images: dict[str, Any] = {"image_size": SIZE, "progress": False}
    with InMemoryImageTextDataset(image_rows(), **images) as dataset:
        dataset.save(V1 / "images_with_checksums")
    with InMemoryImageTextDataset(image_rows(), storage="encoded", recompress=("jpeg", 75), **images) as dataset:
        dataset.save(V1 / "encoded_images")
    clips: dict[str, Any] = {"target_sr": 8_000, "max_duration": 1.0, "progress": False}
    with InMemoryAudioTextDataset(clip_rows(), storage="encoded", dtype="int16", **clips) as dataset:
        dataset.save(V1 / "encoded_clips")
    mixed: list[tuple[Any, list[dict[str, Any]], dict[str, Any], str]] = [
        (InMemoryImageTextDataset, image_rows(), images, "mixed_images"),
        (InMemoryAudioTextDataset, clip_rows(), clips, "mixed_clips"),
    ]
    for cls, rows, arguments, name in mixed:
        limit = _limit(cls, rows, arguments)
        with cls(rows, storage="auto", memory_limit=limit, **arguments) as dataset:
            dataset.save(V1 / name)


def _limit(cls: Any, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> int:
    """Find the memory in which the first samples lie decoded, one of which failed, and the last two encoded."""
    with cls(rows, **arguments) as decoded, cls(rows, storage="encoded", **arguments) as encoded:
        stores = decoded._store, encoded._store
        sizes = [[store.sample(slot).nbytes for slot in (0, 2, 3, 4, 5)] for store in stores]
        return int(encoded._store.rows.nbytes + sum(sizes[0][:3]) + sum(sizes[1][3:]))


if __name__ == "__main__":
    write()
