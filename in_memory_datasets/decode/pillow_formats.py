"""Every format but plain JPEG: Pillow, restricted to formats whose decoders stay inside this process.

Pillow's plugin classes are called directly. `Image.open` would warn about large pictures and odd headers, and Python's
warning filters are shared by all threads; it would also offer the bytes to plugins that start other programs
(Ghostscript for EPS). Three rare warnings remain Pillow's own: damaged TIFF tags, an impossible APNG header, and a GIF
frame far larger than its screen. Where the user's filters make them errors, those pictures fail.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

from in_memory_datasets.errors import DecodeError

FORMATS = (
    "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "ICO", "CUR", "JPEG2000", "PSD", "QOI", "PPM", "XBM", "DIB", "TGA",
)  # fmt: skip
"""What is read beside JPEG. TGA has no magic number and so comes last."""

_UNSUPPORTED_MAGIC = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"%!PS", "EPS"),
    (0, b"%PDF", "PDF"),
)


def open_picture(data: bytes, *, max_pixels: int) -> Any:
    """Open a picture of any of `FORMATS` without decoding its pixels.

    Returns:
        A `PIL.Image.Image`, not loaded, of at most `max_pixels` pixels.

    Raises:
        DecodeError: "not_media" where no format recognises the bytes, "too_many_pixels", or "corrupt".
    """
    from PIL import Image

    Image.init()
    refuse_pixels(_webp_size(data), max_pixels)
    recognised = ""
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # Pillow may have been built without AVIF
        if factory is None or not _accepts(accept, data[:16]):
            continue
        if name == "ICO":
            return _open_icon(data, max_pixels=max_pixels)
        try:
            picture = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # "not mine", as Image.open understands them
            if accept is not None:
                recognised = recognised or name
            continue
        refuse_pixels(picture.size, max_pixels)
        return picture
    for offset, magic, name in _UNSUPPORTED_MAGIC:
        if data.startswith(magic, offset):
            raise DecodeError(f"{name} is not read; expected JPEG, {', '.join(FORMATS[:5])}, ...", reason="not_media")
    if recognised:
        raise DecodeError(f"it begins like {recognised}, and its header cannot be read", reason="corrupt")
    raise DecodeError(f"no picture format begins with {data[:16]!r}", reason="not_media")


def _accepts(accept: Callable[[bytes], Any] | None, start: bytes) -> bool:
    try:
        accepted = accept is None or accept(start)
    except (IndexError, struct.error):  # there are fewer bytes than it looks at
        return False
    return bool(accepted) and not isinstance(accepted, str)  # text says which library this build of Pillow lacks


def open_jpeg(data: bytes, *, max_pixels: int) -> Any:
    """Open a JPEG with Pillow's JPEG class alone, which never looks for further pictures in the file.

    Of several frame headers, which libjpeg refuses later, Pillow reserves memory for what the last one says.

    Raises:
        DecodeError: "too_many_pixels".
    """
    from PIL import JpegImagePlugin

    picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data), "")
    refuse_pixels(picture.size, max_pixels)
    return picture


def refuse_pixels(size: tuple[int, int] | None, max_pixels: int) -> None:
    """Raise DecodeError("too_many_pixels") for a (width, height) above the cap."""
    if size is not None and size[0] * size[1] > max_pixels:
        raise DecodeError(
            f"{size[0]}×{size[1]} is {size[0] * size[1]:,} pixels; the most that is decoded is {max_pixels:,}",
            reason="too_many_pixels",
        )


def _open_icon(data: bytes, *, max_pixels: int) -> Any:
    """Open the largest picture of an ICO file.

    Pillow's own class decodes on opening, before its size could be refused, and warns where directory and picture
    disagree about that size.
    """
    from PIL import BmpImagePlugin, IcoImagePlugin

    icons = IcoImagePlugin.IcoFile(io.BytesIO(data))
    if not icons.entry:
        raise DecodeError("an icon file without a picture", reason="empty")
    largest = icons.entry[0]
    inner = data[largest["offset"] if isinstance(largest, dict) else largest.offset :]  # a dict in older Pillow
    if inner.startswith(b"\x89PNG"):
        return open_picture(inner, max_pixels=max_pixels)
    width, height = BmpImagePlugin.DibImageFile(io.BytesIO(inner)).size
    refuse_pixels((width, height // 2), max_pixels)  # the mask is stored below the picture
    return icons.frame(0)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the canvas size of a WebP file; its decoder reserves memory for it on opening.

    Source: RFC 9649, section 2.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
