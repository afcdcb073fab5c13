"""Which way up a picture is stored, and turning it upright."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np

_ORIENTATION_TAG = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF field types byte, short and long


def exif_orientation(exif: bytes) -> int | None:
    """Read the orientation, 1 to 8, from an EXIF block; None where it holds none that is valid.

    Pillow's reader is not used: it warns about damaged blocks, and Python's warning filters are shared by all threads.

    Source: EXIF 2.32, section 4.6.2 (TIFF header and IFD0), tag 274.

    Example:
        >>> exif_orientation(bytes.fromhex("4d4d002a 00000008 0001 0112 0003 00000001 0006 0000"))
        6
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (num_entries,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * num_entries, len(exif) - 11), 12):
        tag, kind, num_values = struct.unpack_from(order + "HHI", exif, entry)
        if tag == _ORIENTATION_TAG and num_values == 1 and kind in _VALUE_FORMATS:
            (value,) = struct.unpack_from(order + _VALUE_FORMATS[kind], exif, entry + 8)
            return int(value) if 1 <= value <= 8 else None
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """Read the orientation, 1 to 8, from an XMP packet; None where it holds none.

    Example:
        >>> xmp_orientation(b'<rdf:Description tiff:Orientation="3"/>')
        3
    """
    match = _XMP_ORIENTATION.search(xmp)
    return int(match[1]) if match else None


def pillow_orientation(picture: Any) -> int:
    """Read the orientation, 1 to 8, of a loaded Pillow picture; 1 where it states none.

    A PNG may carry its EXIF block after the pixels, so call this only when they are loaded.
    """
    tags = getattr(picture, "tag_v2", None)
    if tags is not None:
        stated = tags.get(_ORIENTATION_TAG)
        if isinstance(stated, int) and 1 <= stated <= 8:
            return stated
    info = picture.info
    exif = info.get("exif")
    if not exif and "Raw profile type exif" in info:  # as ImageMagick writes it into PNG: hexadecimal text
        lines = str(info["Raw profile type exif"]).split("\n")[3:]
        try:
            exif = bytes.fromhex("".join(lines))
        except ValueError:
            exif = None
    orientation = exif_orientation(exif) if isinstance(exif, bytes) else None
    if orientation is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        orientation = xmp_orientation(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
    return orientation or 1


def turn_upright(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Turn stored pixels, shape (H, W, ...), upright; a view, no copy.

    Example:
        >>> turn_upright(np.zeros((2, 5, 3), np.uint8), 6).shape
        (5, 2, 3)
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
