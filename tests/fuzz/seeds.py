"""Where fuzzing begins: small files of every format, made here."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from PIL import Image, features

from in_memory_datasets.decode import keep_clip
from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec, Row, Source
from in_memory_datasets.store import TableWriter
from in_memory_datasets.store.layout import pack_header
from in_memory_datasets.store.manifest import make_manifest

_EXIF = bytes.fromhex("45786966 0000 4d4d002a 00000008 0001 0112 0003 00000001 0006 0000 00000000")
_XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'


def _scene(width: int = 12, height: int = 10) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([20 * x, 25 * y, (x * y) % 256], axis=2).astype(np.uint8))


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def lossless_jpeg(width: int, height: int, components: bytes = b"RGB") -> bytes:
    """Write a lossless JPEG of 128 throughout: every difference is zero, whose code is one bit, 0."""
    num_components = bytes([len(components)])
    frame = struct.pack(">BHH", 8, height, width) + num_components + b"".join(bytes([c, 0x11, 0]) for c in components)
    table = bytes([0x00, 1, *[0] * 15, 0])
    scan = num_components + b"".join(bytes([c, 0x00]) for c in components) + bytes([1, 0, 0])
    bits = bytes(-(-width * height * len(components) // 8))
    return b"\xff\xd8" + _segment(0xC3, frame) + _segment(0xC4, table) + _segment(0xDA, scan) + bits + b"\xff\xd9"


def jpegs() -> Iterator[bytes]:
    """Give baseline, progressive, grey, CMYK, lossless and tagged files, and one of many scans."""
    scene, large = _scene(), _scene(80, 60)
    progressive = _saved(scene, "JPEG", progressive=True)
    yield from (_saved(scene, "JPEG"), progressive, _saved(large, "JPEG", quality=20))
    yield _saved(scene, "JPEG", subsampling=0, quality=95, restart_marker_blocks=1)
    for mode in ("L", "CMYK"):
        yield _saved(scene.convert(mode), "JPEG")
        yield _saved(scene.convert(mode), "JPEG", progressive=True)
    plain = _saved(scene, "JPEG", optimize=True)
    for payload in (_EXIF, _XMP):
        yield plain[:2] + _segment(0xE1, payload) + plain[2:]
    yield plain[:2] + b"\xff\xff\xff" + plain[3:]  # fill bytes
    yield plain[:2] + b"\xff\xd0\0" + plain[2:]  # stray ones
    yield plain.replace(b"\xff\xc0", b"\xff\xc9")  # says that it is arithmetic
    yield plain.replace(b"\xff\xc0", b"\xff\xc3")  # says that it is lossless
    yield progressive.replace(b"\xff\xc2", b"\xff\xc1")
    # Large enough that whatever is made of it would be decoded at a scale.
    yield from (lossless_jpeg(100, 80), lossless_jpeg(100, 80, b"Y"))
    last_scan = progressive[progressive.rfind(b"\xff\xda") : -2]
    yield progressive[:-2] + 40 * last_scan + b"\xff\xd9"


def pictures() -> Iterator[bytes]:
    """Give files of every format that Pillow reads here, in most of their modes."""
    scene = _scene()
    alpha = scene.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(scene.size))
    palette, grey, other = scene.quantize(16), scene.convert("L"), _scene(10, 12).resize(scene.size)
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    modes = {"1": grey.convert("1"), "L": grey, "LA": alpha.convert("LA"), "P": palette, "RGB": scene, "RGBA": alpha}
    frames: dict[str, Any] = {"save_all": True, "append_images": [other]}
    yield from (_saved(picture, "PNG") for picture in (*modes.values(), deep))
    exif = Image.Exif()
    exif[0x0112] = 5
    yield _saved(palette, "PNG", transparency=bytes(range(16)), exif=exif)
    yield _saved(scene, "PNG", **frames)
    yield from (_saved(modes[mode], "GIF") for mode in ("L", "P", "RGBA"))
    yield _saved(scene, "GIF", **frames)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd"):
        yield _saved(scene, "TIFF", compression=compression, exif=exif)
    yield from (_saved(grey.convert("1"), "TIFF", compression=f"group{number}") for number in (3, 4))
    for picture in (deep, palette, alpha, scene.convert("CMYK"), grey.convert("F"), scene.convert("LAB")):
        yield _saved(picture, "TIFF")
    yield from (_saved(modes[mode], "BMP") for mode in ("1", "L", "P", "RGB", "RGBA"))
    yield _saved(scene, "DIB")
    icon = _saved(alpha, "ICO", sizes=[(12, 10)], bitmap_format="bmp")
    yield from (icon, b"\0\0\2" + icon[3:], _saved(alpha, "ICO", sizes=[(12, 10)]))
    for kind in ("WEBP", "AVIF"):
        if features.check(kind.lower()):
            yield from (_saved(picture, kind, quality=50) for picture in (scene, alpha))
            yield _saved(scene, kind, **frames)
    yield _saved(alpha, "WEBP", lossless=True, exif=exif)
    yield from (_saved(picture, "JPEG2000", no_jp2=bare) for picture in (scene, alpha, grey) for bare in (True, False))
    yield from (_saved(picture, "QOI") for picture in (scene, alpha))
    yield from (_saved(picture, "PPM") for picture in (grey.convert("1"), grey, scene, grey.convert("F")))
    yield b"P3 2 1 255 0 1 2 253 254 255"
    yield b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n\1\2\3"
    yield _saved(grey.convert("1"), "XBM")
    yield from (_saved(picture, "TGA", compression=rle) for picture in (palette, alpha) for rle in (None, "tga_rle"))
    planes = np.asarray(scene).transpose(2, 0, 1).tobytes()
    yield b"8BPS\0\1\0\0\0\0\0\0\0\3" + struct.pack(">IIHH", 10, 12, 8, 3) + bytes(12) + b"\0\0" + planes


def _tone(rate: int, num_channels: int = 1, num_frames: int = 400) -> Any:
    tone = 0.4 * np.sin(np.arange(num_frames) * 2800 / rate)
    return np.stack([tone * (1 - 2 * (channel % 2)) for channel in range(num_channels)], axis=1)


def _clip(kind: str, subtype: str | None = None, rate: int = 8_000, num_channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _tone(rate, num_channels), rate, format=kind, subtype=subtype)
    return file.getvalue()


def clips() -> Iterator[bytes]:
    """Give clips of most formats and encodings that libsndfile writes."""
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
        yield _clip("WAV", subtype)
    yield from (_clip("WAVEX", rate=48_000, num_channels=6), _clip("RF64", num_channels=2), _clip("W64"))
    yield from (_clip("AIFF"), _clip("AIFF", "IMA_ADPCM"), _clip("AU", "ALAW"), _clip("CAF", "ALAC_16"), _clip("CAF"))
    yield from (_clip("FLAC", "PCM_16", num_channels=2), _clip("FLAC", "PCM_24", rate=44_100), _clip("FLAC", "PCM_S8"))
    yield from (_clip("OGG", "VORBIS"), _clip("OGG", "OPUS", rate=48_000, num_channels=2), _clip("MP3", rate=16_000))
    for kind in (
        "AVR",
        "SVX",
        "VOC",
        "PVF",
        "IRCAM",
        "NIST",
        "MAT4",
        "MAT5",
        "PAF",
        "HTK",
        "WVE",
        "XI",
        "SDS",
        "MPC2K",
    ):
        subtype = {"WVE": "ALAW", "XI": "DPCM_16"}.get(kind)
        yield _clip(kind, subtype)
    yield from (_clip("RAW", "GSM610"), _clip("RAW", "VOX_ADPCM"))


def rare_clips() -> Iterator[bytes]:
    """Give clips of the formats that only PyAV reads; none where it is not installed."""
    try:
        import av
    except ImportError:
        return
    kinds = (
        ("mp4", "aac"), ("adts", "aac"), ("matroska", "flac"), ("webm", "libopus"), ("asf", "wmav2"), ("ac3", "ac3"),
        ("wv", "wavpack"), ("tta", "tta"), ("flv", "aac"), ("mp4", "alac"), ("matroska", "pcm_s16le"),
        ("mov", "pcm_s16be"),
    )  # fmt: skip
    for container, codec in kinds:
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream: Any = output.add_stream(codec, rate=48_000, layout="stereo" if codec == "wavpack" else "mono")
            stream.bit_rate = 64_000
            resampler = av.AudioResampler(format=stream.codec_context.format, layout=stream.layout, rate=48_000)
            frame = av.AudioFrame.from_ndarray(
                _tone(48_000, num_frames=2_000).astype(np.float32).T.copy(), "flt", "mono"
            )
            frame.sample_rate = 48_000
            fifo = av.AudioFifo()
            for part in resampler.resample(frame):
                fifo.write(part)
            size = stream.codec_context.frame_size or 2_000
            while piece := fifo.read(size, partial=True):
                output.mux(stream.encode(piece))
            output.mux(stream.encode(None))
        yield file.getvalue()


def kept_clips() -> Iterator[bytes]:
    """Give clips as they are kept."""
    for num_frames in (1, 400, 800):
        tone = (20_000 * _tone(8_000, num_frames=num_frames)[:, 0]).astype(np.int16)
        yield keep_clip(tone, spec=AudioSpec(8_000, 0.1))
    yield keep_clip(np.random.default_rng(0).integers(-9_000, 9_000, 800).astype(np.int16), spec=AudioSpec(8_000, 0.1))


def orientations() -> Iterator[bytes]:
    """Give EXIF blocks, XMP packets, and JPEG headers that hold both."""
    yield from (_EXIF, _EXIF[6:], bytes.fromhex("49492a00 08000000 0100 1201 0300 01000000 0600 0000"), _XMP)
    yield b"<tiff:Orientation>3</tiff:Orientation>"
    for data in jpegs():
        if len(data) < 1_500:
            yield data[: data.find(b"\xff\xda") + 20]


def addresses() -> Iterator[bytes]:
    """Give addresses of every kind; U+0001 stands for a secret."""
    yield from (
        b"https://me:\1@a.example:8080/x%2Fy.jpg?size=2#part", b"https://\1@a.example/x.jpg", b"//me:\1@a.example/x",
        b"https://a.example/x.jpg?X-Amz-Credential=\1&X-Amz-Signature=2", b"https://a.example/x?sig=\1;sv=2#a",
        b"zip://a.jpg::s3://me:\1@bucket/x.zip", b"s3://bucket/x.jpg?api_key=\1", b"HTTP://[::1]:80/x y?a=b",
        "https://bücher.example/ü.jpg?token=\1".encode(), b"https://a.example/x?t\tok%65n=\1", b"data:,a%20b",
        b"data:image/png;base64,R0lGODlh", b"/data/a.jpg", b"~/a.jpg", b"../b.jpg?auth=\1", b"file:///a.jpg",
        b"hf://datasets/a/b/c.jpg", b"mailto:\1@a.b", b"https://a.example/?https://b.example/x.jpg?sig=\1",
        b"//[::1@\1],@[::1", b"\xc2\xa0//[::1?sig=@\1", b"https:/\t/me:\1@a.example/x",
        b"https://a.example/?token=https://;\1@b.example",
    )  # fmt: skip


def headers() -> Iterator[bytes]:
    """Give the User-Agent, and lines that may be headers."""
    yield b"MyBot/1.0 (+https://bot.example)\nmybot: noindex, nofollow\nunavailable_after: 25 Jun 10 15:00 PST, none"
    yield b"\nnoimageai\n120\nWed, 21 Oct 2015 07:28:00 GMT"
    yield b"x\n*: none, otherbot: noai\nSun, 06 Nov 1994 08:49:37 +9999\n-1"
    yield b"\xfa\n\x01\x94\n\x01\xad 3\n\x01\xf7"


def answers() -> Iterator[bytes]:
    """Give answers of servers, well and badly behaved."""
    ok = b"HTTP/1.1 200 OK\r\n"
    yield ok + b"Content-Type: image/gif\r\nContent-Length: 6\r\n\r\nGIF89a"
    yield ok + b"Transfer-Encoding: chunked\r\nX-Robots-Tag: bot: noai,,:\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    yield ok + b"Content-Encoding: deflate\r\nContent-Length: 9\r\n\r\nx\x9cK\x04\x00\x00b\x00b"
    yield ok + b"Content-Encoding: gzip, br\r\n\r\n\x1f\x8b"
    yield ok + b"X-Robots-Tag: noai\r\nX-Robots-Tag: none\r\nContent-Length: 1\r\n\r\nx"
    yield b"HTTP/1.1 302 Found\r\nLocation: //b.example/y?a=b#c\r\nContent-Length: 0\r\n\r\n"
    yield b"HTTP/1.1 307 Found\r\nLocation: http://u:p@[::1]:x/%zz\r\n\r\n"
    yield b"HTTP/1.1 503 No\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: -1\r\n\r\n"
    yield b"HTTP/1.0 404 Not Found\r\nContent-Length: 99999999999999999999\r\n\r\nabc"
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"


def manifests() -> Iterator[bytes]:
    """Give manifests of pictures and clips, one of them in the first form, and JSON that is none."""
    yield make_manifest(ImageSpec((8, 6), "crop", ("jpeg", 90)), 3, {"rows": "0f", "places": "1e"})
    yield make_manifest(AudioSpec(16_000, 1.5, "int16"), 0, {})
    first = {"format": "in-memory-datasets", "version": 1, "modality": "audio", "num_samples": 2, "complete": True}
    yield json.dumps({**first, "spec": {"target_sr": 8000, "max_duration": 1.0, "dtype": "float32"}}).encode()
    yield b"[0]"


def arrays() -> Iterator[bytes]:
    """Give files of samples, with headers that are not padded."""

    def file(parts: dict[str, Any]) -> bytes:
        text = pack_header({name: (part.dtype.name, part.shape) for name, part in parts.items()})[8:].rstrip()
        return len(text).to_bytes(8, "little") + text + b"".join(part.tobytes() for part in parts.values())

    offsets, encoded = np.array([0, 3, 5]), {"encoded_offsets": np.array([0, 4]), "encoded": np.zeros(4, np.uint8)}
    yield file({"images": np.zeros((2, 3, 2, 3), np.uint8)})
    yield file(
        {
            "encoded_offsets": encoded["encoded_offsets"],
            "images": np.zeros((1, 3, 2, 3), np.uint8),
            "encoded": encoded["encoded"],
        }
    )
    yield file({"offsets": offsets, "frames": np.zeros(5, np.float32)})
    yield file({"offsets": offsets, "encoded_offsets": np.array([0, 2, 4]), "encoded": encoded["encoded"]})
    yield file(
        {
            "offsets": offsets,
            "encoded_offsets": encoded["encoded_offsets"],
            "frames": np.zeros(3, np.int16),
            "encoded": encoded["encoded"],
        }
    )


def tables() -> Iterator[bytes]:
    """Give tables of rows: none, loaded ones and failed ones."""
    for captions in ((), (("a cat",),), (("ä", ""), (), ("b", "c", "d"))):
        writer = TableWriter()
        writer.add([Row(slot, Source("path", f"/data/{slot}"), texts) for slot, texts in enumerate(captions)])
        if captions:
            writer.loaded(0, 2**63)
        if len(captions) > 1:
            writer.failed(1, Failure(1, "/data/1", "fetch", "not_found", "there is no such file", "", 1))
        yield writer.to_buffer().to_pybytes()
