"""Any picture mode or array to 8-bit RGB; transparency lies over white."""

from __future__ import annotations

from typing import Any

import numpy as np

from in_memory_datasets.decode.resize import Pixels
from in_memory_datasets.errors import DecodeError

# Pillow keeps RGB in four bytes and converts whole pictures; strips keep the peak at one picture and one array.
_STRIP_PIXELS = 4 * 2**20


def rgb_from_picture(picture: Any) -> Pixels:
    """Turn a loaded Pillow picture of any mode into RGB.

    16-bit greys (I;16*, and I whose values exceed 8 bits) are divided by 256. I within 8 bits is taken as it is. F is
    taken as 0 to 255 and clipped, as Pillow does; F within [0, 1], as float TIFF and PFM hold it, is scaled up.

    Returns:
        uint8, shape (H, W, 3), C-contiguous.
    """
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        pixels[...] = _grey_of_deep_picture(picture)[:, :, None]
        return pixels
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = picture if rows >= height else picture.crop((0, top, width, bottom))
        pixels[top:bottom] = _rgb_of_strip(strip)
    return pixels


def _rgb_of_strip(strip: Any) -> Any:
    from PIL import Image

    if strip.mode in ("La", "RGBa"):  # premultiplied
        strip = strip.convert("LA" if strip.mode == "La" else "RGBA")
    if strip.mode in ("LA", "PA", "RGBA") or "transparency" in strip.info:
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        strip = Image.alpha_composite(white, strip)
    return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _grey_of_deep_picture(picture: Any) -> Pixels:
    """Scale a one-channel picture of more than 8 bits to grey, shape (H, W)."""
    transparent = picture.info.get("transparency")
    values = np.asarray(picture)
    if picture.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        is_unit = values.size > 0 and values.min() >= 0 and values.max() <= 1
        grey: Pixels = np.clip(np.rint(values * 255 if is_unit else values), 0, 255).astype(np.uint8)
    elif picture.mode == "I" and values.max(initial=0) <= 255:
        grey = np.clip(values, 0, 255).astype(np.uint8)
    else:
        grey = (np.clip(values, 0, 65_535) >> 8).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def rgb_from_array(array: np.ndarray[Any, Any]) -> Pixels:
    """Turn an array into RGB.

    Args:
        array: Shape (H, W), (H, W, C) or (C, H, W), with C of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA). uint8;
            uint16, divided by 256; bool; other whole numbers from 0 to 255; or floats in [0, 1].

    Returns:
        uint8, shape (H, W, 3); may be a view of `array`.

    Raises:
        DecodeError: "empty" without pixels, "corrupt" for another shape, type or range.

    Example:
        >>> rgb_from_array(np.ones((1, 2), bool)).tolist()
        [[[255, 255, 255], [255, 255, 255]]]
    """
    if _has_channels_first(array.shape):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise DecodeError(
            f"an array of shape {array.shape} is no picture; expected (H, W), (H, W, C) or (C, H, W), C from 1 to 4",
            reason="corrupt",
        )
    if array.size == 0:
        raise DecodeError(f"an array of shape {array.shape} has no pixels", reason="empty")
    array = _eight_bits(array)
    if array.shape[2] in (2, 4):
        colour, alpha = array[:, :, :-1].astype(np.uint16), array[:, :, -1:].astype(np.uint16)
        array = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    rgb: Pixels = np.broadcast_to(array, (*array.shape[:2], 3))
    return rgb


def size_of_array(shape: tuple[int, ...]) -> tuple[int, int]:
    """Give the (width, height) of an array that is a picture to `rgb_from_array`.

    Example:
        >>> size_of_array((20, 30)), size_of_array((20, 30, 3)), size_of_array((3, 20, 30))
        ((30, 20), (30, 20), (30, 20))
    """
    return (shape[2], shape[1]) if _has_channels_first(shape) else (shape[1], shape[0])


def _has_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 2, 3, 4)


def _eight_bits(array: np.ndarray[Any, Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        white: Pixels = array.astype(np.uint8) * np.uint8(255)
        return white
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise DecodeError(f"an array of {array.dtype} is no picture; expected numbers", reason="corrupt")
    low, high = array.min(), array.max()
    most = 1 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # a NaN fails this too
        raise DecodeError(
            f"{array.dtype} values from {low} to {high}; expected 0 to {most} (whole numbers to 255, floats to 1)",
            reason="corrupt",
        )
    scaled: Pixels = (np.rint(array * 255) if array.dtype.kind == "f" else array).astype(np.uint8)
    return scaled
