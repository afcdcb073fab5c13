"""Files that are more, less or something else than they say."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import zlib

import numpy as np
from PIL import Image


def jpeg() -> bytes:
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    """Make a whole PNG of 900 million pixels in some hundred kilobytes."""
    side = 30_000
    engine = zlib.compressobj(9)
    rows = b"".join(engine.compress(bytes(side // 8 + 1) * 100) for _ in range(side // 100)) + engine.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def gif(*, screen: tuple[int, int], frames: list[tuple[int, int]]) -> bytes:
    """Make a GIF whose frames have sizes of their own, whatever its screen has."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([255, 0, 0, 0, 0, 255])
    for width, height in frames:
        data += b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return data + b";"


def tiff_bomb() -> bytes:
    """Make a TIFF that says it has 3.6 billion pixels, and has one strip."""
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 60_000), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(tags)) + entries + bytes(4)


def wav(*, num_frames: int, says_bytes: int | None = None) -> bytes:
    frames = (8000 * np.sin(np.arange(num_frames) / 9)).astype("<i2").tobytes()
    size = len(frames) if says_bytes is None else says_bytes
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + head + frames


def zeros(num_bytes: int, window_bits: int) -> bytes:
    """Compress so many zeros."""
    engine = zlib.compressobj(9, wbits=window_bits)
    piece = bytes(2**20)
    return b"".join(engine.compress(piece) for _ in range(num_bytes // 2**20)) + engine.flush()


@functools.cache
def make_files() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    picture, clip = jpeg(), wav(num_frames=1600)
    page = b"<!DOCTYPE html><html><body>This picture has moved.</body></html>"
    says_jpeg = "Content-Type: image/jpeg"
    return {
        "jpeg": (picture, (says_jpeg,)),
        "jpeg-as-html": (picture, ("Content-Type: text/html; charset=utf-8",)),
        "jpeg-as-nothing": (picture, ()),
        "jpeg-with-a-nonsense-coding": (picture, (says_jpeg, "Content-Encoding: binary")),
        "jpeg-in-gzip": (gzip.compress(picture), (says_jpeg, "Content-Encoding: gzip")),
        "jpeg-in-deflate": (zlib.compress(picture), (says_jpeg, "Content-Encoding: deflate")),
        "jpeg-cut": (picture[: len(picture) // 2], (says_jpeg,)),
        "html": (page, (says_jpeg,)),
        "json": (b'{"error": "no such picture"}', ("Content-Type: image/png",)),
        "gzip-cut": (gzip.compress(picture)[:-9], (says_jpeg, "Content-Encoding: gzip")),
        "no-gzip": (picture, (says_jpeg, "Content-Encoding: gzip")),
        "brotli": (b"\x0b\x02\x80hello\x03", (says_jpeg, "Content-Encoding: br")),
        "zstd": (b"\x28\xb5\x2f\xfd", (says_jpeg, "Content-Encoding: zstd")),
        "gzip-in-gzip": (gzip.compress(gzip.compress(picture)), (says_jpeg, "Content-Encoding: gzip, gzip")),
        "gzip-of-nothing": (gzip.compress(b"") * 50_000, (says_jpeg, "Content-Encoding: gzip")),
        "gzip-bomb": (zeros(2**29, 31), (says_jpeg, "Content-Encoding: gzip")),
        "deflate-bomb": (zeros(2**29, 15), (says_jpeg, "Content-Encoding: deflate")),
        "png-bomb": (png_bomb(), ("Content-Type: image/png",)),
        "gif-with-a-huge-screen": (gif(screen=(65_000, 65_000), frames=[(1, 1)]), ("Content-Type: image/gif",)),
        "gif-with-a-huge-second-frame": (gif(screen=(2, 2), frames=[(1, 1), (65_000, 65_000)]), ()),
        "tiff-bomb": (tiff_bomb(), ("Content-Type: image/tiff",)),
        "wav": (clip, ("Content-Type: audio/wav",)),
        "wav-as-jpeg": (clip, (says_jpeg,)),
        "wav-of-4-gb": (wav(num_frames=1600, says_bytes=0xFFFFFFFF), ("Content-Type: audio/wav",)),
    }
