"""The bytes of samples.safetensors: a header that says which arrays lie where, then the arrays.

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
