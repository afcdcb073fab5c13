"""Pictures: encoded bytes or an object to uint8 RGB of one size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from in_memory_datasets.decode.colour import rgb_from_array, rgb_from_picture, size_of_array
from in_memory_datasets.decode.decode_memory import decode_memory
from in_memory_datasets.decode.jpeg import (
    MAX_SCANS,
    JpegHeader,
    count_scans,
    decode_scaled,
    read_jpeg_header,
    without_metadata,
)
from in_memory_datasets.decode.orientation import pillow_orientation, turn_upright
from in_memory_datasets.decode.pillow_formats import open_jpeg, open_picture, refuse_pixels
from in_memory_datasets.decode.resize import Pixels, fitted_size, resize_pixels
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import ImageSpec, strip_credentials

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded, as Pillow has it: a quarter GiB of three bytes a pixel."""

# What a decode by Pillow holds at its peak, per pixel: Pillow's four bytes, the RGB array and the codec's own buffers.
_PILLOW_BYTES_PER_PIXEL = {"WEBP": 24, "JPEG2000": 20, "AVIF": 16}
_OTHER_BYTES_PER_PIXEL = 12
_PROGRESSIVE_BYTES_PER_PIXEL = 6  # libjpeg keeps all coefficients, 2 bytes each
# Scaling in the DCT costs 0.4 grey levels against a full decode at this margin, 1.6 to 3.8 without one.
_SCALE_MARGIN = 2


def decode_image(data: Any, *, spec: ImageSpec, name: str = "") -> Pixels:
    """Decode one picture into RGB of one size.

    The first frame of an animation is taken, the stated orientation is applied, transparency lies over white. Read
    are JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP, ICO, CUR, JPEG 2000, PSD, QOI, PPM, XBM and TGA.

    Args:
        data: The encoded bytes; or a Pillow picture; or an array or torch tensor of shape (H, W), (H, W, C) or
            (C, H, W), as `colour.rgb_from_array` takes it.
        spec: Size and manner of resizing.
        name: What to call the picture in messages.

    Returns:
        uint8, shape (height, width, 3), C-contiguous; owns its memory.

    Raises:
        DecodeError: `reason` is "empty", "not_media", "truncated", "corrupt" or "too_many_pixels" (above
            `MAX_PIXELS`, refused before decoding). No other exception escapes for bad data.

    Cost: one decode and one resize. Thread-safe; releases the GIL for most of it. All decodes of a process together
    hold about 512 MiB; one that needs more runs alone (above 22 million pixels for WebP, 44 million for PNG, hardly
    ever for JPEG). At the most pixels a PNG takes 0.7 GB, a WebP 1.4 GB.

    Example:
        >>> decode_image(np.zeros((40, 60, 3), np.uint8), spec=ImageSpec((32, 16))).shape
        (16, 32, 3)
    """
    try:
        if isinstance(data, (bytes, bytearray, memoryview)):
            return _decode_bytes(bytes(data), spec)
        return _decode_object(data, spec)
    except DecodeError as error:
        raise DecodeError(f"{_label(name)}: {error}", reason=error.reason) from error.__cause__
    except Exception as error:  # hostile bytes make codecs raise anything; all of it is a fact about them
        raise DecodeError(f"{_label(name)}: {_described(error)}", reason=_reason(error)) from error


def _label(name: str) -> str:
    return strip_credentials(name) if name else "picture"


def _described(error: Exception) -> str:
    return f"cannot be decoded: {error}" if str(error) else f"cannot be decoded: {type(error).__name__}"


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if type(error).__name__.startswith("DecompressionBomb"):
        return "too_many_pixels"
    if any(sign in text for sign in ("truncated", "not enough image data", "premature end", "buffer overrun")):
        return "truncated"
    return "corrupt"


def _decode_bytes(data: bytes, spec: ImageSpec) -> Pixels:
    if not data:
        raise DecodeError("0 bytes; expected a picture", reason="empty")
    if data.startswith(b"\xff\xd8"):
        return _decode_jpeg(data, spec)
    picture = open_picture(data, max_pixels=MAX_PIXELS)
    return _decode_picture(picture, spec)


def _decode_jpeg(data: bytes, spec: ImageSpec) -> Pixels:
    header = read_jpeg_header(data)
    if header is None:
        raise DecodeError(f"a JPEG of {len(data):,} bytes that ends within its header", reason="truncated")
    size = header.width, header.height
    refuse_pixels(size, MAX_PIXELS)
    if header.has_scans and count_scans(data) > MAX_SCANS:
        raise DecodeError(f"a JPEG of more than {MAX_SCANS} scans", reason="corrupt")
    if 0 in size:
        raise DecodeError(f"a JPEG of {size[0]}×{size[1]} pixels", reason="corrupt")
    min_size = _min_size(header, spec)
    if header.is_scalable:
        try:
            with decode_memory().reserve(_jpeg_bytes(header, min_size)):
                return _finish(decode_scaled(data, min_size=min_size), header.orientation, spec)
        except ValueError:
            # Strict decoding also refuses what is only untidy; Pillow decides whether pixels are missing.
            pass
    picture = open_jpeg(without_metadata(data, header), max_pixels=MAX_PIXELS)
    if header.is_scalable:
        picture.draft(None, min_size)
    return _decode_picture(picture, spec, orientation=header.orientation)


def _min_size(header: JpegHeader, spec: ImageSpec) -> tuple[int, int]:
    """Give the (width, height), as stored, below which a scaled decode must not fall."""
    size = header.width, header.height
    is_turned = header.orientation >= 5
    width, height = fitted_size((size[1], size[0]) if is_turned else size, spec)
    if is_turned:
        width, height = height, width
    return _SCALE_MARGIN * width, _SCALE_MARGIN * height


def _jpeg_bytes(header: JpegHeader, min_size: tuple[int, int]) -> int:
    """Estimate what a scaled decode holds."""
    pixels = header.width * header.height
    scale = math.ceil(8 * max(min_size[0] / header.width, min_size[1] / header.height)) / 8
    scaled = 3 * pixels * (scale**2 if scale <= 1 / 2 else 1)
    return int(scaled) + (_PROGRESSIVE_BYTES_PER_PIXEL * pixels if header.frame_type == 2 else 0)


def _decode_object(data: Any, spec: ImageSpec) -> Pixels:
    if hasattr(data, "getbands"):  # a Pillow picture, told without importing Pillow
        refuse_pixels(data.size, MAX_PIXELS)
        return _decode_picture(data, spec)
    if hasattr(data, "detach"):  # a torch tensor
        data = data.detach().cpu()
    if not hasattr(data, "__array__") and not hasattr(data, "__array_interface__"):
        raise DecodeError(
            f"{type(data).__name__} is no picture; expected encoded bytes, a Pillow picture or an array",
            reason="not_media",
        )
    pixels = rgb_from_array(np.asarray(data))
    refuse_pixels((pixels.shape[1], pixels.shape[0]), MAX_PIXELS)
    resized = resize_pixels(pixels, spec)
    return resized.copy() if np.shares_memory(resized, pixels) else resized


def _decode_picture(picture: Any, spec: ImageSpec, *, orientation: int | None = None) -> Pixels:
    if 0 in picture.size:
        raise DecodeError(f"a picture of {picture.size[0]}×{picture.size[1]} pixels", reason="empty")
    with decode_memory().reserve(_pillow_bytes(picture)):
        picture.load()
        if orientation is None:
            orientation = pillow_orientation(picture)
        return _finish(rgb_from_picture(picture), orientation, spec)


def _pillow_bytes(picture: Any) -> int:
    """Estimate what a decode by Pillow holds."""
    bytes_per_pixel = _PILLOW_BYTES_PER_PIXEL.get(picture.format, _OTHER_BYTES_PER_PIXEL)
    return int(bytes_per_pixel * picture.size[0] * picture.size[1])


def has_more_pixels(data: Any, *, spec: ImageSpec) -> bool:
    """Tell whether a picture has more pixels, in width or height, than are made of the whole of it.

    Args:
        data: What `decode_image` has decoded with the same `spec`.

    Cost: the header is read. Where it leaves open which way up the picture is, and that decides, one decode.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data)
        if data.startswith(b"\xff\xd8") and (header := read_jpeg_header(data)) is not None:
            return _is_larger((header.width, header.height), header.orientation, spec)
        picture = open_picture(data, max_pixels=MAX_PIXELS)
        if (upright := _is_larger(picture.size, 1, spec)) == _is_larger(picture.size, 6, spec):
            return upright
        with decode_memory().reserve(_pillow_bytes(picture)):
            picture.load()
        return _is_larger(picture.size, pillow_orientation(picture), spec)
    if hasattr(data, "getbands"):
        return _is_larger(data.size, pillow_orientation(data), spec)
    return _is_larger(size_of_array(np.shape(data)), 1, spec)


def _is_larger(size: tuple[int, int], orientation: int, spec: ImageSpec) -> bool:
    width, height = (size[1], size[0]) if orientation >= 5 else size
    fitted_width, fitted_height = fitted_size((width, height), spec)
    return width > fitted_width or height > fitted_height


def _finish(pixels: Pixels, orientation: int, spec: ImageSpec) -> Pixels:
    resized = resize_pixels(turn_upright(pixels, orientation), spec)
    return resized if resized.flags.owndata else resized.copy()  # what was cut off would stay in memory with it
