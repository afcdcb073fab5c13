"""Pictures as they are kept encoded: in whatever form is the smallest and decodes to the same pixels."""

from __future__ import annotations

import io
import math
from typing import Any

from in_memory_datasets.decode.image import MAX_PIXELS, has_more_pixels
from in_memory_datasets.decode.pillow_formats import refuse_pixels
from in_memory_datasets.decode.resize import Pixels
from in_memory_datasets.schema import ImageSpec

_MAX_JPEG_SIDE = 65_500  # libjpeg's


def keep_image(data: Any, pixels: Pixels, *, spec: ImageSpec) -> bytes:
    """Choose the bytes that stand for a picture.

    Of these, the smallest: its own bytes, as they were fetched; the decoded pixels as they are, behind the header of a
    PPM file; or, where there are no bytes of its own or they are more than the pixels, a PNG of these. So nothing kept
    takes more than it would decoded and that header, of at most 19 bytes. With `spec.recompress`, and where the source
    has more pixels than are served, also a JPEG of the pixels, which is then not the same but close.

    Args:
        data: What was fetched: encoded bytes, or an object that `decode_image` takes.
        pixels: What `decode_image` made of it with the same `spec`.

    Returns:
        A file that `decode_image` turns into `pixels` again, bit for bit if it was not recompressed.

    Raises:
        DecodeError: "too_many_pixels" where there are no bytes of its own, and more pixels than are decoded again.

    Cost: none for most; 2 to 10 ms for a PNG at 224×224, 0.5 ms for a JPEG.

    Example:
        >>> import numpy as np
        >>> spec = ImageSpec((64, 64))
        >>> pixels = np.zeros((64, 64, 3), np.uint8)
        >>> keep_image(b"what was fetched", pixels, spec=spec), keep_image(pixels, pixels, spec=spec)[1:4]
        (b'what was fetched', b'PNG')
    """
    source = bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else None
    if source is None:
        refuse_pixels(spec.image_size, MAX_PIXELS)
    elif math.prod(spec.image_size) > MAX_PIXELS:
        return source
    candidates = [] if source is None else [source]
    if source is None or len(source) > pixels.nbytes:
        candidates += [_png(pixels), ppm(pixels)]
    if spec.recompress is not None and max(spec.image_size) <= _MAX_JPEG_SIDE and has_more_pixels(data, spec=spec):
        candidates.append(_jpeg(pixels, spec.recompress[1]))
    return min(candidates, key=len)


def ppm(pixels: Pixels) -> bytes:
    """Write pixels as they are. Source: netpbm's ppm(5), raw."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    import simplejpeg

    # Full colour resolution: at the size that is served nothing is left to spare, and it costs an eighth of the bytes.
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444")
    return encoded
