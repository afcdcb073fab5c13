"""The three ways of fitting a picture to a size."""

from __future__ import annotations

from typing import Any

import numpy as np

from in_memory_datasets.schema import ImageSpec

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def fitted_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """Give the (width, height) that a whole picture of `size` has once resized, before crop or pad.

    Example:
        >>> [fitted_size((400, 200), ImageSpec((100, 100), resize)) for resize in ("stretch", "crop", "pad")]
        [(100, 100), (200, 100), (100, 50)]
    """
    width, height = size
    target_width, target_height = spec.image_size
    if spec.resize == "stretch":
        return spec.image_size
    is_wider = width * target_height > height * target_width
    if is_wider == (spec.resize == "crop"):
        return max(1, round(width * target_height / height)), target_height
    return target_width, max(1, round(height * target_width / width))


def resize_pixels(pixels: Pixels, spec: ImageSpec) -> Pixels:
    """Resize a picture to `spec.image_size` with an antialiased bicubic filter.

    Args:
        pixels: uint8, shape (H, W, 3), any strides.
        spec: The size, and whether to stretch, crop or pad.

    Returns:
        uint8, shape (spec height, spec width, 3), C-contiguous; a copy unless the size is already right.

    Cost: one pass over the cropped input, one over the output. Thread-safe, releases the GIL.
    """
    width, height = spec.image_size
    if spec.resize == "crop":
        pixels = _central_crop(pixels, spec)
    if spec.resize != "pad":
        return _bicubic(pixels, spec.image_size)
    fitted_width, fitted_height = fitted_size((pixels.shape[1], pixels.shape[0]), spec)
    fitted = _bicubic(pixels, (fitted_width, fitted_height))
    if (fitted_width, fitted_height) == (width, height):
        return fitted
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - fitted_width) // 2, (height - fitted_height) // 2
    canvas[top : top + fitted_height, left : left + fitted_width] = fitted
    return canvas


def _central_crop(pixels: Pixels, spec: ImageSpec) -> Pixels:
    """Cut the largest central piece of the target's shape, so that nothing is resized only to be cut off."""
    height, width = pixels.shape[:2]
    target_width, target_height = spec.image_size
    if width * target_height > height * target_width:
        piece_width, piece_height = max(1, round(height * target_width / target_height)), height
    else:
        piece_width, piece_height = width, max(1, round(width * target_height / target_width))
    left, top = (width - piece_width) // 2, (height - piece_height) // 2
    return pixels[top : top + piece_height, left : left + piece_width]


def _bicubic(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    width, height = size
    # The kernel reads channels_last memory as it is; anything else would be repacked plane by plane.
    pixels = np.ascontiguousarray(pixels)
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch

    # torch's AVX kernel runs in the calling thread alone. Without it torch would start an OpenMP team in every decode
    # thread, and torch.set_num_threads cannot stop that without changing what threads started later inherit; Pillow's
    # filter (the same but for rounding) stays in its thread everywhere.
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        from PIL import Image

        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        return np.array(resized, np.uint8)
    if not pixels.flags.writeable:  # torch warns about read-only memory, whether or not it writes there
        pixels = pixels.copy()
    # The batch axis is added in NumPy: torch's unsqueeze would give it a stride that hides channels_last.
    batch = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)
    resized_batch = torch.nn.functional.interpolate(batch, size=(height, width), mode="bicubic", antialias=True)
    result = np.empty((height, width, 3), np.uint8)
    result[...] = resized_batch[0].permute(1, 2, 0).numpy()
    return result
