"""decode_image: every mode, orientation, size and object; every refusal."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from in_memory_datasets.decode import decode_image
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import ImageSpec
from tests.making import check_threads_agree

WIDTH, HEIGHT = 96, 64
SAME = ImageSpec((WIDTH, HEIGHT))


def scene(width=WIDTH, height=HEIGHT):
    """Render a smooth picture whose four corners differ, so that no turn or crop goes unnoticed."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([255 * x, 255 * y, 255 * (1 - x) * y], axis=2).astype(np.uint8)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(got, expected):
    error = np.mean((got.astype(float) - np.asarray(expected).astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def refused(data, **options):
    with pytest.raises(DecodeError) as caught:
        decode_image(data, spec=SAME, **options)
    return caught.value


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "AVIF", "PPM", "TGA", "JPEG2000", "ICO", "QOI"])
def test_every_format_gives_owned_contiguous_rgb(kind):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "ICO": {"sizes": [(WIDTH, HEIGHT)]}}.get(kind, {})
    result = decode_image(encoded(Image.fromarray(scene()), kind, **options), spec=SAME)
    assert result.shape == (HEIGHT, WIDTH, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert psnr(result, scene()) > 30


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 60}])
@pytest.mark.parametrize("size", [(96, 64), (1000, 700), (333, 777)])
def test_jpeg_equals_pillow(options, size):
    data = encoded(Image.fromarray(scene(*size)), "JPEG", **options)
    expected = Image.open(io.BytesIO(data)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    assert psnr(decode_image(data, spec=SAME), expected) > 40


def test_grey_jpeg_becomes_three_equal_channels():
    result = decode_image(encoded(Image.fromarray(scene()).convert("L"), "JPEG"), spec=SAME)
    assert (result[:, :, 0] == result[:, :, 1]).all()
    assert (result[:, :, 0] == result[:, :, 2]).all()


def test_cmyk_jpeg_has_its_inverted_ink_turned_back():
    picture = Image.fromarray(scene()).convert("CMYK")
    assert psnr(decode_image(encoded(picture, "JPEG", quality=95), spec=SAME), picture.convert("RGB")) > 35


def test_arithmetic_and_lossless_headers_never_reach_the_scaled_decoder():
    """A lossless JPEG, decoded at a scale by simplejpeg, is written past the end of the smaller buffer."""
    script = (
        "import sys; from in_memory_datasets.decode import decode_image;"
        "from in_memory_datasets.errors import DecodeError; from in_memory_datasets.schema import ImageSpec\n"
        "data = sys.stdin.buffer.read()\n"
        "for size in ((8, 8), (100, 100), (3, 200)):\n"
        "    try: result = decode_image(data, spec=ImageSpec(size)); print(result.min(), result.max())\n"
        "    except DecodeError as error: print(error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=lossless_jpeg(500, 400), capture_output=True, check=True
    )
    assert done.stderr == b""
    assert set(done.stdout.decode().splitlines()) <= {"128 128", "corrupt"}


def lossless_jpeg(width, height):
    """Write a grey 8-bit lossless JPEG of 128 throughout: every difference is zero, whose code is one bit, 0."""

    def segment(marker, payload):
        return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload

    frame = bytes([8]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([1, 1, 0x11, 0])
    table = bytes([0x00, 1, *[0] * 15, 0])
    scan = bytes([1, 1, 0x00, 1, 0, 0])
    bits = bytes(-(-width * height // 8))
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan) + bits + b"\xff\xd9"


def palette_picture():
    return Image.fromarray(scene()).quantize(64)


MODES = {
    "1": lambda: Image.fromarray(scene()).convert("1"),
    "L": lambda: Image.fromarray(scene()).convert("L"),
    "P": palette_picture,
    "RGB": lambda: Image.fromarray(scene()),
    "RGBX": lambda: Image.fromarray(scene()).convert("RGBX"),
    "CMYK": lambda: Image.fromarray(scene()).convert("CMYK"),
    "YCbCr": lambda: Image.fromarray(scene()).convert("YCbCr"),
    "LAB": lambda: Image.fromarray(scene()).convert("LAB"),
    "HSV": lambda: Image.fromarray(scene()).convert("HSV"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_opaque_mode_equals_pillows_conversion(mode):
    picture = MODES[mode]()
    assert psnr(decode_image(picture, spec=SAME), picture.convert("RGB")) > 45


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "La", "RGBa"])
def test_transparency_lies_over_white(mode):
    alpha = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint8)
    picture = Image.fromarray(scene())
    if mode in ("LA", "La"):
        picture = picture.convert("L").convert("LA")
    elif mode == "PA":
        picture = palette_picture().convert("PA")
    else:
        picture = picture.convert("RGBA")
    picture.putalpha(Image.fromarray(alpha))
    rgb = np.asarray(picture.convert("RGBA"))[:, :, :3].astype(float)
    expected = rgb * (alpha[:, :, None] / 255) + 255 * (1 - alpha[:, :, None] / 255)
    given = picture.convert(mode) if mode in ("La", "RGBa") else picture
    result = decode_image(given, spec=SAME)
    assert np.abs(result - expected).max() <= 4  # premultiplied modes round twice
    assert (result[0, :3] >= 253).all()


@pytest.mark.parametrize("key", [3, bytes([0, 255, 255])])
def test_palette_transparency_lies_over_white_without_a_warning(key):
    picture = palette_picture()
    data = encoded(picture, "PNG", transparency=key)
    result = decode_image(data, spec=SAME)
    index = np.asarray(picture)
    transparent = index == (3 if isinstance(key, int) else 0)
    assert transparent.any()
    assert (result[transparent] == 255).all()
    assert (result[~transparent] == np.asarray(picture.convert("RGB"))[~transparent]).all()


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65_535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        result = decode_image(encoded(Image.fromarray(values), kind), spec=SAME)
        assert (result[:, :, 0] == values >> 8).all()
    assert (decode_image(values, spec=SAME)[:, :, 1] == values >> 8).all()


def test_sixteen_bit_transparency_key_is_white():
    values = np.full((HEIGHT, WIDTH), 4_000, np.uint16)
    values[:8] = 20_000
    data = encoded(Image.fromarray(values), "PNG", transparency=20_000)
    result = decode_image(data, spec=SAME)
    assert (result[:8] == 255).all()
    assert (result[8:] == 4_000 >> 8).all()


def test_deep_integer_and_float_modes():
    ramp = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    as_int = decode_image(Image.fromarray(ramp.astype(np.int32)), spec=SAME)
    assert (as_int[:, :, 0] == ramp.astype(np.int32)).all()
    as_float = decode_image(Image.fromarray(ramp.astype(np.float32)), spec=SAME)
    assert np.abs(as_float[:, :, 0] - ramp).max() <= 0.5
    unit = decode_image(Image.fromarray((ramp / 255).astype(np.float32)), spec=SAME)
    assert np.abs(unit[:, :, 0] - ramp).max() <= 0.51
    assert decode_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)), spec=SAME).max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_every_format(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    data = encoded(Image.fromarray(scene(60, 40)), kind, exif=exif, **options)
    for resize in ("stretch", "crop", "pad"):
        spec = ImageSpec((48, 24), resize)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert psnr(decode_image(data, spec=spec), decode_image(np.asarray(upright), spec=spec)) > 38


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_large_turned_jpeg_keeps_its_margin(orientation):
    """The scaled decode must weigh the stored width against the upright height."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(scene(1600, 400)), "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    for resize in ("stretch", "crop", "pad"):
        spec = ImageSpec((90, 200), resize)
        assert psnr(decode_image(data, spec=spec), decode_image(np.asarray(upright), spec=spec)) > 40


def test_xmp_and_imagemagick_orientations_are_applied():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    jpeg = encoded(Image.fromarray(scene()), "JPEG", xmp=xmp, quality=95)
    assert psnr(decode_image(jpeg, spec=SAME), scene()[::-1, ::-1]) > 30
    exif = Image.Exif()
    exif[0x0112] = 3
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}")
    png = encoded(Image.fromarray(scene()), "PNG", pnginfo=info)
    assert (decode_image(png, spec=SAME) == scene()[::-1, ::-1]).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"MM" * 40]
)
def test_damaged_exif_is_no_reason_to_lose_a_picture(exif):
    data = encoded(Image.fromarray(scene()), "JPEG", exif=exif, quality=95)
    assert psnr(decode_image(data, spec=SAME), scene()) > 30


def test_crop_takes_the_centre_and_pad_lays_it_on_black():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (10, 200, 30)
    assert (decode_image(pixels, spec=ImageSpec((40, 40), "crop")) == (10, 200, 30)).all()
    padded = decode_image(np.full((40, 100, 3), 200, np.uint8), spec=ImageSpec((50, 50), "pad"))
    assert (padded[15:35] == 200).all()
    assert (padded[:15] == 0).all()
    assert (padded[35:] == 0).all()


def test_pad_of_the_same_shape_fills_everything():
    assert (decode_image(np.full((20, 40, 3), 9, np.uint8), spec=ImageSpec((80, 40), "pad")) == 9).all()


def test_the_same_size_is_not_resampled():
    assert (decode_image(encoded(Image.fromarray(scene()), "PNG"), spec=SAME) == scene()).all()


def test_resize_equals_pillow_without_the_avx_kernel(monkeypatch):
    """Where torch would start OpenMP threads, Pillow resizes: the pictures are the same but for rounding."""
    import torch

    spec = ImageSpec((50, 30))
    fast = decode_image(scene(), spec=spec)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert np.abs(fast.astype(int) - decode_image(scene(), spec=spec)).max() <= 1


def test_decoding_leaves_torchs_thread_setting_alone():
    import torch

    before = torch.get_num_threads()
    worker = threading.Thread(target=decode_image, args=(scene(),), kwargs={"spec": ImageSpec((30, 30))})
    worker.start()
    worker.join()
    decode_image(scene(), spec=ImageSpec((30, 30)))
    assert torch.get_num_threads() == before


ARRAYS = {
    "uint8": scene(),
    "uint16": scene().astype(np.uint16) * 256,
    "int64": scene().astype(np.int64),
    "float32": scene().astype(np.float32) / 255,
    "float64": scene().astype(np.float64) / 255,
    "channels first": scene().transpose(2, 0, 1),
    "opaque RGBA": np.dstack([scene(), np.full((HEIGHT, WIDTH), 255, np.uint8)]),
    "negative strides": scene()[::-1, ::-1].copy()[::-1, ::-1],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_are_pictures(name):
    assert (decode_image(ARRAYS[name], spec=SAME) == scene()).all()


def test_grey_arrays_tensors_and_read_only_memory():
    import torch

    grey = scene()[:, :, 0]
    for given in (grey, grey[:, :, None], grey[None]):
        assert (decode_image(given, spec=SAME) == grey[:, :, None]).all()
    assert (decode_image(torch.from_numpy(scene()).permute(2, 0, 1), spec=SAME) == scene()).all()
    frozen = scene()
    frozen.flags.writeable = False
    assert decode_image(frozen, spec=ImageSpec((8, 8))).shape == (8, 8, 3)


def test_the_result_never_shares_memory_with_the_object():
    pixels = scene()
    result = decode_image(pixels, spec=SAME)
    assert not np.shares_memory(result, pixels)
    assert decode_image(bytearray(encoded(Image.fromarray(pixels), "PNG")), spec=SAME).flags.owndata


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_media"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_media"),
        (b"vm\n", "not_media"),
        (b"v", "not_media"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "not_media"),
        (object(), "not_media"),
        ("a string", "not_media"),
        (np.zeros((5, 6, 7), np.uint8), "corrupt"),
        (np.full((4, 4), 2.0), "corrupt"),
        (np.full((4, 4), np.nan), "corrupt"),
        (np.full((4, 4), -1), "corrupt"),
        (np.zeros((4, 4), complex), "corrupt"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "corrupt"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(data, reason):
    assert refused(data).reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_half_a_file_is_refused(kind):
    data = encoded(Image.fromarray(scene(300, 300)), kind)
    assert refused(data[: len(data) // 2]).reason in ("truncated", "corrupt")


def test_messages_name_the_sample_without_credentials():
    message = str(refused(b"nothing", name="https://me:secret@a.example/x.jpg?token=abc"))
    assert message.startswith("https://***@a.example/x.jpg?token=***: ")


def huge_png(width, height):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, io.SEEK_END)
    PngImagePlugin.putchunk(buffer, b"IHDR", header)
    PngImagePlugin.putchunk(buffer, b"IDAT", b"x" * 20)
    return buffer.getvalue()


def huge_gif(width, height):
    return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\0;"


def huge_jpeg(width, height):
    data = bytearray(encoded(Image.fromarray(scene(8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def jpeg_of_a_second_huge_frame(width, height):
    """Pillow goes by the last frame header, where libjpeg will refuse a second one."""
    small, huge = encoded(Image.fromarray(scene(8, 8)), "JPEG"), huge_jpeg(width, height)
    frame = slice(small.index(b"\xff\xc0"), small.index(b"\xff\xc4"))
    return small[: frame.stop] + huge[frame] + small[frame.stop :]


def huge_webp(width, height):
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + canvas
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def huge_ico(width, height):
    inner = huge_png(width, height)
    entry = bytes([0, 0, 0, 0, 1, 0, 32, 0]) + len(inner).to_bytes(4, "little") + (22).to_bytes(4, "little")
    return b"\0\0\1\0\1\0" + entry + inner


@pytest.mark.parametrize("make", [huge_png, huge_gif, huge_jpeg, jpeg_of_a_second_huge_frame, huge_webp, huge_ico])
@pytest.mark.parametrize("size", [(10_000, 10_000), (16_383, 16_383)])
def test_too_many_pixels_are_refused_from_the_header_without_a_warning(make, size):
    """Pillow would warn about the smaller of these and raise an error of its own about the larger."""
    assert refused(make(*size)).reason == "too_many_pixels"


def test_arrays_and_pictures_are_capped_too():
    wide = np.broadcast_to(np.uint8(0), (10_000, 10_000, 3))
    assert refused(wide).reason == "too_many_pixels"


def test_a_jpeg_of_thousands_of_scans_is_refused():
    progressive = encoded(Image.fromarray(scene()), "JPEG", progressive=True)
    assert refused(progressive + b"\xff\xda" * 1_000).reason == "corrupt"
    sequential = encoded(Image.fromarray(scene()), "JPEG")
    one_colour_at_a_time = sequential.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x01")
    assert one_colour_at_a_time != sequential
    assert "more than 500 scans" in str(refused(one_colour_at_a_time + b"\xff\xda" * 1_000))


def test_a_jpeg_that_has_all_in_its_first_scan_may_hold_what_looks_like_thousands():
    """Such bytes lie in embedded previews; libjpeg reads one scan of these files, whatever follows."""
    sequential = encoded(Image.fromarray(scene()), "JPEG")
    comment = b"\xff\xfe\xff\xff" + b"\xff\xda" * 32_766 + b"."
    looks_like_it = sequential[:2] + comment + sequential[2:]
    np.testing.assert_array_equal(decode_image(looks_like_it, spec=SAME), decode_image(sequential, spec=SAME))


def test_threads_agree_bit_for_bit():
    data = [
        encoded(Image.fromarray(scene(300 + 10 * i, 200)), kind) for i, kind in enumerate(["JPEG", "PNG", "WEBP"] * 4)
    ]
    check_threads_agree(lambda each: decode_image(each, spec=SAME), data)


def test_importing_the_package_imports_no_decoder():
    heavy = ["torch", "PIL", "soundfile", "soxr", "simplejpeg", "av"]
    script = f"import in_memory_datasets.decode, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_picture_that_is_only_cropped_is_held_without_what_was_cut_off():
    result = decode_image(
        encoded(Image.fromarray(scene(WIDTH, 3 * HEIGHT)), "PNG"), spec=ImageSpec(SAME.image_size, "crop")
    )
    np.testing.assert_array_equal(result, scene(WIDTH, 3 * HEIGHT)[HEIGHT : 2 * HEIGHT])
    assert result.flags.owndata
