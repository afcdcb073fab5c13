"""Fuzz targets of the decoders: a sample comes out as promised, or a DecodeError with a reason."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from in_memory_datasets.decode import decode_audio, decode_image, keep_clip, keep_image, open_clip
from in_memory_datasets.decode.audio_formats import sniff_audio
from in_memory_datasets.decode.jpeg import read_jpeg_header, without_metadata
from in_memory_datasets.decode.orientation import exif_orientation, xmp_orientation
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, AudioSpec, ImageSpec

SOI = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"

_SPECS = (ImageSpec((16, 9)), ImageSpec((5, 8), "crop", ("jpeg", 80)), ImageSpec((8, 8), "pad"))
_AUDIO_SPECS = (AudioSpec(16_000, 0.25), AudioSpec(8_000, 0.1, "int16"))
_SECRET = "secret"
_NAME = f"https://me:{_SECRET}@a.example/sample"
# Formats without a mark of their own are told by their names.
_HEADERLESS = ("gsm", "vox", "g722")
# What `pillow_formats` says it leaves to Pillow.
_PILLOW_WARNINGS = (
    "Corrupt EXIF data", "Metadata Warning", "Tag offset too large", "Tag data larger than file", "Truncated File Read",
    "Invalid APNG", "Image size",
)  # fmt: skip


def jpegs(data: bytes) -> None:
    """Decode JPEG files, which go through simplejpeg where that is safe."""
    _check_picture(data if data.startswith(SOI) else SOI + data)


def pictures(data: bytes) -> None:
    """Decode all other files of pictures, which go through Pillow."""
    if not data.startswith(SOI):
        _check_picture(data)
        if (repaired := _with_png_checksums(data)) != data:
            _check_picture(repaired)


def clips(data: bytes) -> None:
    """Decode clips of the formats that libsndfile reads; also those that only their name tells."""
    if _is_rare(data):
        return
    if not _check_clip(data, _NAME):
        for extension in _HEADERLESS:
            _check_clip(data, f"{_NAME}.{extension}")


def rare_clips(data: bytes) -> None:
    """Decode clips of the formats that only PyAV reads."""
    if _is_rare(data):
        _check_clip(data, _NAME)


def kept_clips(data: bytes) -> None:
    """Decode parts of a clip that was kept encoded, and altered since."""
    spec = AudioSpec(8_000, 0.1)
    for start, num_frames in ((0, None), (0, 0), (3, 5), (0, 400), (700, None)):
        with _refusals():
            frames = open_clip(data, spec=spec, start=start, num_frames=num_frames)
            assert frames.dtype == np.float32
            assert frames.ndim == 1
            assert len(frames) == num_frames or (num_frames is None and len(frames) <= spec.max_frames)
            assert np.isfinite(frames).all()
            assert np.abs(frames).max(initial=0) <= 1


def orientations(data: bytes) -> None:
    """Read orientations, and walk the header of a JPEG as libjpeg does."""
    tiff = b"Exif\0\0II*\0\x08\0\0\0"
    for orientation in (exif_orientation(data), exif_orientation(tiff + data), xmp_orientation(data)):
        assert orientation is None or 1 <= orientation <= 8
    data = data if data.startswith(SOI) else SOI + data
    header = read_jpeg_header(data)
    if header is None:
        return
    assert 1 <= header.orientation <= 8
    bare = without_metadata(data, header)
    again = read_jpeg_header(bare)
    assert again is not None
    assert again.orientation == 1
    assert (again.width, again.height, again.frame_type) == (header.width, header.height, header.frame_type)
    assert without_metadata(bare, again) == bare
    if header.is_scalable:  # then simplejpeg decides by what it reads itself how large its buffer is
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return
        assert (width, height) == (header.width, header.height)


def _is_rare(data: bytes) -> bool:
    found = sniff_audio(data, "")
    return found is not None and not found.is_native and found.name != "Ogg"


def _check_picture(data: bytes) -> None:
    spec = _SPECS[zlib.crc32(data) % len(_SPECS)]  # one is three times as fast as each, and damage changes it
    with _refusals():
        pixels = decode_image(data, spec=spec, name=_NAME)
        _check_pixels(pixels, spec)
        kept = keep_image(data, pixels, spec=spec)
        again = decode_image(kept, spec=spec)
        _check_pixels(again, spec)
        assert len(kept) <= len(data) or len(kept) <= pixels.nbytes + 19
        assert spec.recompress is not None or np.array_equal(again, pixels)


def _check_pixels(pixels: NDArray[Any], spec: ImageSpec) -> None:
    width, height = spec.image_size
    assert pixels.dtype == np.uint8
    assert pixels.shape == (height, width, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.owndata


def _check_clip(data: bytes, name: str) -> bool:
    """Decode a clip in every manner; tell whether its format was recognised."""
    recognised = False
    for spec in _AUDIO_SPECS:
        with _refusals() as reasons:
            frames = decode_audio(data, spec=spec, name=name)
            assert frames.dtype == spec.dtype
            assert frames.ndim == 1
            assert 1 <= len(frames) <= spec.max_frames
            if spec.dtype == "float32":
                assert np.isfinite(frames).all()
                assert np.abs(frames).max() <= 1
            else:
                kept = keep_clip(frames, spec=spec)
                assert np.array_equal(open_clip(kept, spec=spec), frames * np.float32(1 / 32_768))
        recognised = recognised or "not_media" not in reasons
    return recognised


@contextmanager
def _refusals() -> Iterator[list[str]]:
    """Let a DecodeError pass that has a reason and hides what is secret, and no warning that is not known."""
    reasons: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield reasons
        except DecodeError as error:
            _check_refusal(error)
            reasons.append(error.reason)
    unknown = [str(each.message) for each in caught if not str(each.message).startswith(_PILLOW_WARNINGS)]
    assert not unknown, unknown


def _check_refusal(error: DecodeError) -> None:
    assert error.reason in REASONS[1:], error.reason
    assert error.stage == "decode"
    assert _SECRET not in str(error)


def _with_png_checksums(data: bytes) -> bytes:
    """Give the chunks of a PNG the checksums they should have, so that damage gets past them."""
    if not data.startswith(PNG):
        return data
    parts, place = [PNG], len(PNG)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[place:end], zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")]
        place = end + 4
    return b"".join(parts) + data[place:]
