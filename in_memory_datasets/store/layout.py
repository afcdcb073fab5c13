"""The bytes of samples.safetensors: a header that says which arrays lie where, then the arrays.

The first samples of a store lie decoded and the rest encoded; mostly, all are one or the other. Where things are comes
first, then the media:

    offsets          int64 [N + 1]       of clips: clip i has the frames offsets[i]:offsets[i + 1], decoded or not
    encoded_offsets  int64 [E + 1]       of the E encoded samples, the last ones
    images           uint8 [D, H, W, 3]  the D = N - E decoded pictures, or
    frames           float32|int16       the decoded clips, end to end
    encoded          uint8               the encoded samples, end to end

The header is padded to one fixed length, so that samples can be written before their number is known and images start
on a page.

Source: the safetensors format, https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON,
arrays without gaps; the header may end in blanks).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec

HEADER_BYTES = 4096
_DTYPES = {"U8": "|u1", "I16": "<i2", "I64": "<i8", "F32": "<f4"}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


def pack_header(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Write the header for arrays that follow one another, given as name -> (numpy dtype, shape).

    Returns:
        `HEADER_BYTES` bytes.

    Example:
        >>> header = pack_header({"images": ("uint8", (2, 4, 4, 3))})
        >>> len(header), header[8:40]
        (4096, b'{"images":{"dtype":"U8","shape":')
    """
    places: dict[str, object] = {}
    start = 0
    for name, (dtype, shape) in arrays.items():
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        places[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(places, separators=(",", ":")).encode()
    return (HEADER_BYTES - 8).to_bytes(8, "little") + text.ljust(HEADER_BYTES - 8)


def map_arrays(view: memoryview) -> dict[str, NDArray[Any]]:
    """Read the header and give each array as a read-only view; nothing is copied.

    Raises:
        StoreError: The header is damaged, or does not cover the bytes exactly.
    """
    try:
        num_header = 8 + int.from_bytes(view[:8], "little")
        places = json.loads(bytes(view[8:num_header])) if num_header <= view.nbytes else None
        if not isinstance(places, dict):
            raise ValueError(f"a header of {num_header} bytes in a file of {view.nbytes}")
        places.pop("__metadata__", None)
        parts, end = {}, 0
        for name, place in sorted(places.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = place["data_offsets"]
            dtype, shape = np.dtype(_DTYPES[place["dtype"]]), tuple(place["shape"])
            if start != end or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(f"{name!r} of shape {shape} cannot lie at {start}:{stop}")
            parts[name] = (slice(num_header + start, num_header + stop), dtype, shape)
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"samples.safetensors is damaged: {error}; delete it and load again") from error
    if num_header + end != view.nbytes:
        raise StoreError(
            f"samples.safetensors has {view.nbytes:,} bytes, expected {num_header + end:,}; delete it and load again"
        )
    return {name: np.frombuffer(view[part], dtype).reshape(shape) for name, (part, dtype, shape) in parts.items()}


def check_arrays(spec: ImageSpec | AudioSpec, num_samples: int, arrays: dict[str, NDArray[Any]]) -> int:
    """Check that arrays are those of a store, and count its decoded samples.

    Raises:
        StoreError: One is missing, of another type or shape, or its offsets do not ascend.
    """
    num_encoded = 0
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    if "encoded_offsets" in arrays:
        num_encoded = max(0, arrays["encoded_offsets"].size - 1)
        expected["encoded_offsets"] = ("int64", (num_encoded + 1,))
        expected["encoded"] = ("uint8", (_end_of("encoded_offsets", arrays),))
    num_decoded = num_samples - num_encoded
    if isinstance(spec, ImageSpec):
        width, height = spec.image_size
        if num_decoded or not num_encoded:
            expected["images"] = ("uint8", (num_decoded, height, width, 3))
    else:
        expected["offsets"] = ("int64", (num_samples + 1,))
        if num_decoded or not num_encoded:
            expected["frames"] = (spec.dtype, (_end_of("offsets", arrays, num_decoded),))
    found = {name: (value.dtype.name, value.shape) for name, value in arrays.items()}
    if num_decoded < 0 or found != expected:
        raise StoreError(f"samples.safetensors: expected {_describe(expected)}, got {_describe(found)}; load again")
    for name in ("offsets", "encoded_offsets"):
        if name in arrays and (arrays[name][0] != 0 or bool(np.any(arrays[name][1:] < arrays[name][:-1]))):
            raise StoreError(f"samples.safetensors: the {name} do not ascend from 0; load again")
    return num_decoded


def _end_of(name: str, arrays: dict[str, NDArray[Any]], last: int = -1) -> int:
    """Give where the samples before `last` end, by offsets that may be of any kind; -1 where they do not say."""
    offsets = arrays.get(name)
    fits = offsets is not None and offsets.dtype == np.int64 and offsets.ndim == 1 and -1 <= last < offsets.size
    return int(offsets[last]) if offsets is not None and fits and offsets.size else -1


def _describe(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name!r} {dtype} {shape}" for name, (dtype, shape) in arrays.items()) or "nothing"
