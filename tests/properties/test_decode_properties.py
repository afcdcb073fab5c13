"""Decoding under damage and at any size: only DecodeError comes out, and shapes and pixels are as promised."""

import io

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from in_memory_datasets.decode import decode_audio, decode_image
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, AudioSpec, ImageSpec

RESIZES = st.sampled_from(["stretch", "crop", "pad"])


def _picture(kind, **options):
    x, y = np.meshgrid(np.arange(80), np.arange(60))
    pixels = np.stack([3 * x, 4 * y, (x * y) % 256], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _clip(kind):
    frames = 0.5 * np.sin(np.arange(4_000) / 9)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([frames, frames[::-1]], axis=1), 22_050, format=kind)
    return buffer.getvalue()


PICTURES = [_picture("JPEG"), _picture("JPEG", progressive=True), _picture("PNG"), _picture("WEBP"), _picture("GIF")]
CLIPS = [_clip("WAV"), _clip("FLAC"), _clip("OGG"), _clip("AIFF")]


def decoded_or_reason(decode, data, spec, name=""):
    try:
        return decode(data, spec=spec, name=name)
    except DecodeError as error:
        return error.reason


@st.composite
def damaged(draw, originals):
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        # Headers decide the most, so half of the damage is done there.
        at = draw(st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1)))
        data[at] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@settings(max_examples=300, deadline=None)
@given(data=damaged(PICTURES), width=st.integers(1, 90), height=st.integers(1, 90), resize=RESIZES)
def test_a_damaged_picture_is_decoded_or_refused(data, width, height, resize):
    result = decoded_or_reason(decode_image, data, ImageSpec((width, height), resize))
    assert result in REASONS if isinstance(result, str) else result.shape == (height, width, 3)


@settings(max_examples=300, deadline=None)
@given(data=damaged(CLIPS), seconds=st.floats(0.01, 2.0))
def test_a_damaged_clip_is_decoded_or_refused(data, seconds):
    spec = AudioSpec(16_000, seconds)
    result = decoded_or_reason(decode_audio, data, spec)
    if isinstance(result, str):
        assert result in REASONS
    else:
        assert 1 <= result.size <= spec.max_frames
        assert np.abs(result).max() <= 1


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400), name=st.sampled_from(["", "a.gsm", "a.g722", "a.mp3", "a.vox", "a.tga"]))
def test_any_bytes_are_decoded_or_refused(data, name):
    for decode, spec in ((decode_image, ImageSpec((4, 4))), (decode_audio, AudioSpec(8_000, 1.0))):
        result = decoded_or_reason(decode, data, spec, name)
        assert not isinstance(result, str) or result in REASONS


@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    target=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    seed=st.integers(0, 2**32 - 1),
)
def test_stretching_equals_pillow(source, target, seed):
    # Middle greys: where a filter overshoots 0 or 255, the result depends on which pass is clipped first.
    pixels = np.random.default_rng(seed).integers(64, 192, (source[1], source[0], 3), np.uint8)
    result = decode_image(pixels, spec=ImageSpec(target))
    expected = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC))
    assert result.shape == expected.shape
    # Each of the two passes may round the other way.
    assert np.abs(result.astype(int) - expected).max() <= 2


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    target=st.tuples(st.integers(1, 100), st.integers(1, 100)),
)
def test_padding_keeps_the_picture_whole_and_centred(source, target):
    pixels = np.full((source[1], source[0], 3), 255, np.uint8)
    result = decode_image(pixels, spec=ImageSpec(target, "pad"))
    rows, columns = np.flatnonzero(result.any(axis=(1, 2))), np.flatnonzero(result.any(axis=(0, 2)))
    fitted = ImageOps.contain(Image.new("L", source), target).size
    assert abs(rows.size - fitted[1]) <= 1
    assert abs(columns.size - fitted[0]) <= 1
    assert (result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()
    assert abs(rows[0] - (target[1] - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (target[0] - 1 - columns[-1])) <= 1
