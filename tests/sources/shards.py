"""Tar shards in the WebDataset manner, whole and damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.unit.rows.media import wav

Members = list[tuple[str, bytes]]


def write_shard(path: Path, members: Members, *, num_bytes: int | None = None) -> str:
    """Write a shard, or the first bytes of it, and give its path."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    if num_bytes is not None:
        path.write_bytes(path.read_bytes()[:num_bytes])
    return str(path)


def picture(number: int, file_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (number * 7 % 256, number * 3 % 256, number)).save(file, file_format)
    return file.getvalue()


def pictures(numbers: range, *, media: str = "jpg") -> Members:
    """Give samples of a picture, its caption as text, and others as JSON."""
    file_format = {"jpg": "JPEG", "png": "PNG"}[media]
    return [
        member
        for i in numbers
        for member in (
            (f"{i:04}.{media}", picture(i, file_format)),
            (f"{i:04}.txt", f"text {i}".encode()),
            (f"{i:04}.json", json.dumps({"caption": f"json {i}", "all": [f"one {i}", f"two {i}"]}).encode()),
        )
    ]


def clips(numbers: range, *, media: str) -> Members:
    """Give samples of a clip in a directory, and its captions as JSON."""
    return [
        member
        for i in numbers
        for member in (
            (f"clips/{i:04}.{media}", wav(2000 + 10 * i, file_format=media.upper())),
            (f"clips/{i:04}.json", json.dumps({"text": [f"one {i}", f"two {i}"]}).encode()),
        )
    ]


def load_shards(shards: list[str], *, streaming: bool = True) -> Any:
    """Load shards as users do."""
    import datasets

    return datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=streaming)
