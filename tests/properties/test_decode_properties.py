"""Decoding under damage and at any size: only DecodeError comes out, and shapes and pixels are as promised."""

import io

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from in_memory_datasets.decode import decode_audio, decode_image, keep_clip, keep_image, open_clip
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


@settings(max_examples=200, deadline=None)
@given(
    data=st.one_of(damaged(PICTURES), st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=RESIZES,
)
def test_a_picture_that_is_kept_encoded_is_the_one_that_would_lie_decoded(data, width, height, resize):
    spec = ImageSpec((width, height), resize)
    if isinstance(data, tuple):
        data = np.random.default_rng(data[2]).integers(0, 256, (*data[:2], 3), np.uint8)
    pixels = decoded_or_reason(decode_image, data, spec)
    if not isinstance(pixels, str):
        kept = keep_image(data, pixels, spec=spec)
        np.testing.assert_array_equal(decode_image(kept, spec=spec), pixels)
        assert len(kept) <= pixels.nbytes + 19


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    target=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    resize=RESIZES,
    quality=st.integers(1, 100),
    kind=st.sampled_from(["JPEG", "PNG", "array"]),
)
def test_only_what_is_shrunk_is_recompressed(size, target, resize, quality, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = io.BytesIO()
    if kind != "array":
        Image.fromarray(pixels).save(data, kind)
    source = pixels if kind == "array" else data.getvalue()
    spec = ImageSpec(target, resize, ("jpeg", quality))
    expected = decode_image(source, spec=spec)
    served = decode_image(keep_image(source, expected, spec=spec), spec=spec)
    assert served.shape == expected.shape
    shrinks = [target[side] < size[side] for side in (0, 1)]
    # Cropping fits the picture around the size, padding within it: one side alone decides.
    is_larger = any(shrinks) if resize != "crop" else all(shrinks)
    assert is_larger or np.array_equal(served, expected)


@settings(max_examples=150, deadline=None)
@given(
    num_frames=st.integers(1, 10_000),
    loudness=st.sampled_from([0, 1, 300, 32_768]),
    seed=st.integers(0, 99),
    rate=st.one_of(st.integers(1, 65_535), st.integers(6_554, 65_535).map(lambda tens: 10 * tens)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_part_of_a_clip_that_is_kept_encoded_is_the_slice_of_its_sixteen_bits(
    num_frames, loudness, seed, rate, part
):
    spec = AudioSpec(rate, 10_000.0)
    clip = np.random.default_rng(seed).integers(-loudness, max(1, loudness), num_frames).astype(np.int16)
    start = int(part[0] * num_frames)
    wanted = int(part[1] * (num_frames - start))
    opened = open_clip(keep_clip(clip, spec=spec), spec=spec, start=start, num_frames=wanted)
    np.testing.assert_array_equal(opened, clip[start : start + wanted] * np.float32(1 / 32_768))


@settings(max_examples=200, deadline=None)
@given(data=damaged([keep_clip(np.arange(3_000).astype(np.int16), spec=AudioSpec(8_000, 1.0))]), part=st.booleans())
def test_a_damaged_clip_that_was_kept_has_its_length_or_is_refused(data, part):
    spec = AudioSpec(8_000, 1.0)

    def decode(data, *, spec, name):
        return open_clip(data, spec=spec, start=100 * part, num_frames=2_000 if part else None)

    result = decoded_or_reason(decode, data, spec)
    if isinstance(result, str):
        assert result in REASONS
    else:
        assert result.size == 2_000 if part else result.size <= spec.max_frames
