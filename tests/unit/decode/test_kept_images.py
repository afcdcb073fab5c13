"""keep_image: what is kept of a picture decodes to the pixels that would lie decoded, and takes no more room."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from in_memory_datasets.decode import decode_image, keep_image
from in_memory_datasets.decode.jpeg import read_jpeg_header
from in_memory_datasets.decode.kept_images import ppm
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import ImageSpec, Resize

RESIZES: tuple[Resize, ...] = ("stretch", "crop", "pad")
PPM_HEADER_BYTES = 19  # of the longest one: b"P6\n65535 65535\n255\n"


def scene(width: int = 90, height: int = 60) -> NDArray[np.uint8]:
    """Render a smooth picture with a little noise, so that JPEG takes less than PNG and PNG less than pixels."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(0).integers(0, 6, (height, width, 3))
    return (np.stack([230 * x, 230 * y, 230 * (1 - x) * y], axis=2) + noise).astype(np.uint8)


def noise(width: int = 90, height: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(scene()), kind, exif=exif, **options)


def turned_behind_the_pixels(orientation: int) -> bytes:
    """Write a PNG whose EXIF block follows its pixels, as the PNG specification allows."""
    data = encoded(Image.fromarray(scene()), "PNG")
    block = bytes.fromhex("4d4d002a000000080001011200030000000100") + bytes([orientation, 0, 0])
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    return data[:-12] + chunk + data[-12:]


def with_alpha() -> Image.Image:
    alpha = np.linspace(0, 255, 90 * 60).reshape(60, 90, 1).astype(np.uint8)
    return Image.fromarray(np.concatenate([scene(), alpha], axis=2))


def palette() -> Image.Image:
    return Image.fromarray(scene()).quantize(32)


def depths() -> NDArray[np.uint16]:
    return np.linspace(0, 65_535, 90 * 60).reshape(60, 90).astype(np.uint16)


SOURCES: dict[str, Callable[[], Any]] = {
    "baseline JPEG": lambda: encoded(Image.fromarray(scene()), "JPEG", quality=90),
    "progressive JPEG": lambda: encoded(Image.fromarray(scene()), "JPEG", progressive=True),
    "grey JPEG": lambda: encoded(Image.fromarray(scene()).convert("L"), "JPEG"),
    "CMYK JPEG": lambda: encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG"),
    "JPEG larger than its pixels": lambda: encoded(Image.fromarray(noise(300, 200)), "JPEG", quality=100),
    **{f"JPEG turned {n}": lambda n=n: turned("JPEG", n) for n in (3, 6, 7)},
    **{f"{kind} turned 6": lambda kind=kind: turned(kind, 6) for kind in ("TIFF", "PNG", "WEBP")},
    "PNG turned behind its pixels": lambda: turned_behind_the_pixels(6),
    "PNG": lambda: encoded(Image.fromarray(scene()), "PNG"),
    "PNG of noise": lambda: encoded(Image.fromarray(noise(300, 200)), "PNG"),
    "PNG with alpha": lambda: encoded(with_alpha(), "PNG"),
    "PNG with a palette": lambda: encoded(palette(), "PNG"),
    "PNG with a transparent colour": lambda: encoded(palette(), "PNG", transparency=3),
    "PNG of 16 bits": lambda: encoded(Image.fromarray(depths()), "PNG"),
    "PNG of one bit": lambda: encoded(Image.fromarray(scene()).convert("1"), "PNG"),
    "animated GIF": lambda: encoded(palette(), "GIF", save_all=True, append_images=[palette().rotate(90)]),
    "animated WebP": lambda: encoded(with_alpha(), "WEBP", save_all=True, append_images=[with_alpha().rotate(90)]),
    "WebP": lambda: encoded(Image.fromarray(scene()), "WEBP"),
    "AVIF": lambda: encoded(Image.fromarray(scene()), "AVIF"),
    "TIFF": lambda: encoded(Image.fromarray(noise(300, 200)), "TIFF"),
    "BMP": lambda: encoded(Image.fromarray(scene()), "BMP"),
    "icon": lambda: encoded(with_alpha(), "ICO", sizes=[(45, 30)]),
    "bytearray": lambda: bytearray(encoded(Image.fromarray(scene()), "PNG")),
    "memoryview": lambda: memoryview(encoded(Image.fromarray(scene()), "PNG")),
    "array": scene,
    "array of noise": noise,
    "array of floats": lambda: scene().astype(np.float32) / 255,
    "array, channels first": lambda: scene().transpose(2, 0, 1),
    "grey array": lambda: scene()[:, :, 0],
    "array with alpha": lambda: np.asarray(with_alpha()),
    "picture": lambda: Image.fromarray(scene()),
    "picture with alpha": with_alpha,
    "picture with a palette": palette,
    "picture of 16 bits": lambda: Image.fromarray(depths()),
    "picture of a file": lambda: Image.open(io.BytesIO(turned("JPEG", 6))),
}


@pytest.mark.parametrize("size", [(24, 20), (90, 60), (60, 90), (200, 131), (1, 1)])
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_kept_decodes_to_the_same_pixels_in_no_more_room(name: str, size: tuple[int, int]) -> None:
    for resize in RESIZES:
        spec, source = ImageSpec(size, resize), SOURCES[name]()
        pixels = decode_image(source, spec=spec)
        kept = keep_image(source, pixels, spec=spec)
        np.testing.assert_array_equal(decode_image(kept, spec=spec), pixels)
        assert len(kept) <= pixels.nbytes + PPM_HEADER_BYTES
        if isinstance(source, (bytes, bytearray, memoryview)):
            assert len(kept) <= len(source)
        assert kept == keep_image(source, pixels, spec=spec)


def test_each_form_is_kept_where_it_is_the_smallest() -> None:
    spec = ImageSpec((90, 60))
    for source, begins_with in (
        (encoded(Image.fromarray(scene()), "JPEG"), b"\xff\xd8"),
        (encoded(Image.fromarray(scene()), "BMP"), b"\x89PNG"),
        (encoded(Image.fromarray(noise()), "BMP"), b"P6\n90 60\n255\n"),
        (scene(), b"\x89PNG"),
        (noise(), b"P6\n90 60\n255\n"),
        (encoded(with_alpha(), "WEBP"), b"RIFF"),
    ):
        assert keep_image(source, decode_image(source, spec=spec), spec=spec).startswith(begins_with)


def test_ppm_is_a_header_and_the_pixels() -> None:
    """As netpbm's ppm(5) has it; Pillow reads it alike."""
    pixels = noise(7, 3)
    data = ppm(pixels)
    assert data == b"P6\n7 3\n255\n" + pixels.tobytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("PNG of one bit", "icon")])
def test_a_picture_of_more_pixels_than_are_served_becomes_a_jpeg_of_the_size_that_is_served(
    name: str, resize: Resize
) -> None:
    spec, source = ImageSpec((44, 30), resize, ("jpeg", 92)), SOURCES[name]()
    pixels = decode_image(source, spec=spec)
    kept = keep_image(source, pixels, spec=spec)
    plain = keep_image(source, pixels, spec=ImageSpec((44, 30), resize))
    assert len(kept) <= len(plain)
    if kept != plain:
        header = read_jpeg_header(kept)
        assert header is not None
        assert (header.width, header.height, header.orientation, header.num_components) == (44, 30, 1, 3)
        assert header.frame_type == 0
        with Image.open(io.BytesIO(kept)) as picture:
            assert all(layer[1:3] == (1, 1) for layer in picture.layer)  # type: ignore[attr-defined]  # 4:4:4
    served = decode_image(kept, spec=spec)
    assert np.abs(served.astype(int) - pixels).mean() < 6
    assert kept == keep_image(source, pixels, spec=spec)


# (width, height) of the picture as it is seen, and of what is served: the first has no more in either.
NOT_LARGER = [((60, 90), (60, 90)), ((60, 90), (61, 91)), ((60, 90), (90, 120))]
LARGER = [((60, 90), (90, 60)), ((60, 90), (59, 90)), ((60, 90), (60, 89))]
UPRIGHT: dict[str, Callable[[], Any]] = {
    "JPEG": lambda: encoded(Image.fromarray(noise(60, 90)), "JPEG", quality=100),
    "PNG": lambda: encoded(Image.fromarray(scene(60, 90)), "PNG"),
    "JPEG turned": lambda: turned("JPEG", 6),
    "PNG turned": lambda: turned("PNG", 6),
    "PNG turned behind its pixels": lambda: turned_behind_the_pixels(6),
    "WebP turned": lambda: turned("WEBP", 8, lossless=True),
    "TIFF turned": lambda: turned("TIFF", 6),
    "array": lambda: scene(60, 90),
    "array, channels first": lambda: scene(60, 90).transpose(2, 0, 1),
    "grey array": lambda: scene(60, 90)[:, :, 1],
    "picture": lambda: Image.fromarray(scene(60, 90)),
    "picture turned": lambda: Image.open(io.BytesIO(turned("JPEG", 6))),
    "picture of a turned TIFF": lambda: Image.open(io.BytesIO(turned("TIFF", 6))),
}


@pytest.mark.parametrize(("seen", "served"), [*NOT_LARGER, *LARGER])
@pytest.mark.parametrize("name", UPRIGHT)
def test_only_pictures_of_more_pixels_than_are_served_are_recompressed(
    name: str, seen: tuple[int, int], served: tuple[int, int]
) -> None:
    """Which way up a picture is counts, wherever its file says so; and an array is no different from a file."""
    source, spec = UPRIGHT[name](), ImageSpec(served, "stretch", ("jpeg", 5))
    pixels = decode_image(source, spec=spec)
    kept = keep_image(source, pixels, spec=spec)
    is_exact = np.array_equal(decode_image(kept, spec=spec), pixels)
    assert is_exact == ((seen, served) in NOT_LARGER)


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_a_picture_that_is_enlarged_before_it_is_cut_or_padded_is_not_recompressed(resize: Resize) -> None:
    data = encoded(Image.fromarray(scene(60, 90)), "PNG")
    for size, is_recompressed in (((30, 90), resize == "pad"), ((120, 90), False), ((61, 45), resize == "pad")):
        spec = ImageSpec(size, resize, ("jpeg", 5))
        pixels = decode_image(data, spec=spec)
        served = decode_image(keep_image(data, pixels, spec=spec), spec=spec)
        assert np.array_equal(served, pixels) == (not is_recompressed)


def test_a_higher_quality_is_closer_and_takes_no_less_room() -> None:
    data = encoded(Image.fromarray(noise(300, 200)), "PNG")
    sizes, errors = [], []
    for quality in (1, 10, 30, 50, 70, 80, 90, 95, 100):
        spec = ImageSpec((150, 100), recompress=("jpeg", quality))
        pixels = decode_image(data, spec=spec)
        kept = keep_image(data, pixels, spec=spec)
        sizes.append(len(kept))
        errors.append(float(np.abs(decode_image(kept, spec=spec).astype(int) - pixels).mean()))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 5
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("size", [(65_535, 1), (1, 65_501)])
def test_a_size_that_no_jpeg_can_have_is_kept_as_it_is(size: tuple[int, int]) -> None:
    spec, source = ImageSpec(size, recompress=("jpeg", 90)), scene(70, 70)
    pixels = decode_image(source, spec=spec)
    np.testing.assert_array_equal(decode_image(keep_image(source, pixels, spec=spec), spec=spec), pixels)


def test_of_more_pixels_than_are_decoded_only_a_source_is_kept() -> None:
    spec, pixels = ImageSpec((10_000, 10_000)), np.broadcast_to(np.uint8(0), (10_000, 10_000, 3))
    assert keep_image(b"what was fetched", pixels, spec=spec) == b"what was fetched"
    with pytest.raises(DecodeError, match="10000×10000 is 100,000,000 pixels") as caught:
        keep_image(np.zeros((4, 4, 3), np.uint8), pixels, spec=spec)
    assert caught.value.reason == "too_many_pixels"


FUZZ = """
import io, sys
import numpy as np
from PIL import Image
from in_memory_datasets.decode import decode_image, keep_image
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, ImageSpec
from tests.making import damage
draw = np.random.default_rng(0)
pixels = draw.integers(0, 256, (10, 12, 3), np.uint8)
large = Image.fromarray(pixels).resize((120, 100), Image.Resampling.BICUBIC)
file = io.BytesIO()
large.save(file, "JPEG", progressive=True)
spec = ImageSpec((48, 40))
small = ImageSpec((48, 40), recompress=("jpeg", 90))
kept = [file.getvalue(), keep_image(large, decode_image(large, spec=spec), spec=spec)]
kept.append(keep_image(large, decode_image(large, spec=small), spec=small))
kept.append(keep_image(pixels, decode_image(draw.integers(0, 256, (40, 48, 3), np.uint8), spec=spec), spec=spec))
print(*[data[:2].hex() for data in kept])
num_refused = 0
for number in range(4 * 2_000):
    data = damage(kept[number % 4], draw)
    try:
        assert decode_image(data, spec=spec).shape == (40, 48, 3)
    except DecodeError as error:
        assert error.reason in REASONS
        num_refused += 1
print(num_refused)
"""


@pytest.mark.campaign
def test_eight_thousand_damaged_pictures_are_refused_or_have_the_right_shape() -> None:
    """JPEG, progressive and as it is recompressed, PNG and PPM; in a process of its own, which a crash would end."""
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    kinds, num_refused = done.stdout.splitlines()
    assert kinds == "ffd8 8950 ffd8 5036"
    assert 1_000 < int(num_refused) < 8_000
