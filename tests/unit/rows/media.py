"""Small media, and datasets that hold them as the Hub's library stores them, made without decoding or encoding."""

from __future__ import annotations

import io
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 6), level).save(file, "PNG")
    return file.getvalue()


def wav(num_frames: int, rate: int = 8000, file_format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(num_frames, 0.25, np.float32), rate, format=file_format)
    return file.getvalue()


def stored(rows: list[dict[str, Any]], features: dict[str, Any]) -> Any:
    """Make a `datasets.Dataset` of rows as they are stored."""
    schema = datasets.Features(features).arrow_schema
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=schema))
