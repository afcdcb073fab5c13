"""Every shape a media column has, and the source in each."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from in_memory_datasets.errors import SampleError
from in_memory_datasets.rows import source_from_value

SOURCES: dict[str, tuple[Any, tuple[str, Any, str]]] = {
    "http URL": ("http://a.example/x/cat.jpg?w=1", ("url", "http://a.example/x/cat.jpg?w=1", "cat.jpg")),
    "URL in capitals": ("HTTPS://a.example/CAT.JPG", ("url", "HTTPS://a.example/CAT.JPG", "CAT.JPG")),
    "URL with blanks around it": (" https://a.example/a.png\n", ("url", "https://a.example/a.png", "a.png")),
    "URL without a scheme": ("//a.example/a.png", ("url", "https://a.example/a.png", "a.png")),
    "URL that cannot be split": ("http://[", ("url", "http://[", "")),
    "text of numpy": (np.str_("/data/a.wav"), ("path", "/data/a.wav", "a.wav")),
    "path": ("in/Train, by — Zürich.wav", ("path", "in/Train, by — Zürich.wav", "Train, by — Zürich.wav")),
    "path that begins with a dash": ("-0Gj8-vB1q4.wav", ("path", "-0Gj8-vB1q4.wav", "-0Gj8-vB1q4.wav")),
    "path object": (Path("/data/a.wav"), ("path", "/data/a.wav", "a.wav")),
    "object store": ("s3://bucket/key/a.flac", ("fsspec", "s3://bucket/key/a.flac", "a.flac")),
    "member of an archive": ("zip://in/a.png::/data/b.zip", ("fsspec", "zip://in/a.png::/data/b.zip", "a.png")),
    "bytes": (b"GIF89a", ("bytes", b"GIF89a", "")),
    "bytearray": (bytearray(b"GIF89a"), ("bytes", b"GIF89a", "")),
    "memoryview": (memoryview(b"GIF89a"), ("bytes", b"GIF89a", "")),
    "struct of bytes": ({"bytes": b"fLaC", "path": "mnt/split/123.flac"}, ("bytes", b"fLaC", "123.flac")),
    "struct of bytes without a path": ({"bytes": b"fLaC", "path": None}, ("bytes", b"fLaC", "")),
    "struct of bytes as numbers": ({"bytes": [71, 73]}, ("bytes", b"GI", "")),
    "struct of a path": ({"bytes": None, "path": "/data/a.png"}, ("path", "/data/a.png", "a.png")),
    "struct of a URL": ({"bytes": None, "path": "hf://d/a.png"}, ("fsspec", "hf://d/a.png", "a.png")),
    "struct of a path object": ({"path": PurePosixPath("/data/a.png")}, ("path", "/data/a.png", "a.png")),
    "struct out of a data frame": ({"bytes": b"fLaC", "path": float("nan")}, ("bytes", b"fLaC", "")),
    "data URL": ("data:image/png;base64,R0lG", ("bytes", b"GIF", "data.png")),
    "data URL with percent signs": ("data:,a%20b", ("bytes", b"a b", "data")),
}  # fmt: skip


@pytest.mark.parametrize("shape", SOURCES)
def test_a_source_is_found_in(shape: str) -> None:
    value, expected = SOURCES[shape]
    source = source_from_value(value)
    assert source is not None
    assert (source.kind, source.value, source.name) == expected


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", b"", {}, {"bytes": None, "path": None}, {"bytes": b"", "path": "a.png"}, {"array": None},
     {"path": ""}, [], float("nan"), pandas.NA, np.float64("nan")],
)  # fmt: skip
def test_nothing_is_no_source(value: Any) -> None:
    assert source_from_value(value) is None


def test_decoded_values_are_passed_on_as_they_are() -> None:
    picture = Image.open(io.BytesIO(png()))
    clip = {"array": np.zeros(8), "sampling_rate": 8000, "path": "x/a.wav"}
    pixels = np.zeros((2, 2, 3), np.uint8)
    for value, name in ((picture, ""), (clip, "a.wav"), (pixels, "")):
        source = source_from_value(value)
        assert source is not None
        assert (source.kind, source.name) == ("object", name)
        assert source.value is value


def test_lists_of_numbers_are_the_arrays_they_were_before_arrow() -> None:
    source = source_from_value([[[0, 1, 2], [3, 4, 255]]])
    assert source is not None
    assert source.kind == "object"
    np.testing.assert_array_equal(source.value, [[[0, 1, 2], [3, 4, 255]]])


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        (5, "bad_row", "int 5 is no media"),
        (True, "bad_row", "bool True is no media"),
        (np.int64(5), "bad_row", "int64"),
        ({"url": "a.png"}, "bad_row", "a mapping of 'url' is no media: expected 'bytes', 'path' or 'array'"),
        ({"bytes": 5}, "bad_row", "'bytes' is of type int"),
        ({"bytes": "text"}, "bad_row", "'bytes' is of type str"),
        ({"bytes": [1, 256]}, "bad_row", "'bytes' is of type list"),
        ({"path": 5}, "bad_row", "'path' is of type int"),
        (["a.png", "b.png"], "bad_row", r"a list of 2 str is no media: choose one .*lambda row"),
        ([[1, 2], [3]], "bad_row", "a list of 2 list is no media"),
        ("data:image/png;base64,R0l", "bad_url", "is damaged"),
        ("data:image/png", "empty", "holds no data"),
        ("https://a.example/\ud83d.png", "bad_url", "half a surrogate pair"),
        ("data:,\ud83d", "bad_url", "half a surrogate pair"),
        ("a\0b.png", "bad_url", "is no path: it holds a NUL"),
        (Path("a\0b.png"), "bad_url", "is no path: it holds a NUL"),
        ("~\0", "bad_url", "is no path"),
        ("\ud83d.png", "bad_url", "is no path: .*surrogates not allowed"),
    ],
)
def test_other_values_are_refused_with_the_reason(value: Any, reason: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        source_from_value(value)
    assert (caught.value.stage, caught.value.reason) == ("row", reason)
    str(caught.value).encode()


def test_no_credentials_are_shown_of_a_url_that_is_refused() -> None:
    with pytest.raises(SampleError) as caught:
        source_from_value("https://me:secret@a.example/\ud83d.png?token=secret")
    assert "secret" not in str(caught.value)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("https://me:secret@a.example/a.png?token=secret", "a.png"),
        ("https://me:secret@a.example", ""),
        ("4http://me:secret@a.example", "***@a.example"),  # no scheme begins with a digit
        ("..3://me:secret@a.example/a.png", "a.png"),
        ("..3://me:secret@a.example", "***@a.example"),
        ("//a.example/a.png?sig=secret", "a.png"),
        ("zip://in/a.png::https://a.example/b.zip?X-Amz-Signature=secret", "a.png"),
        ("a.png?token=secret", "a.png?token=***"),
        ("in/why?.png", "why?.png"),
    ],
)
def test_no_credentials_are_shown_of_the_address_that_inline_media_came_from(path: str, name: str) -> None:
    """Labels stand in reports and in the store: what signed an address must not get there by way of a file name."""
    for value in ({"bytes": b"GIF89a", "path": path}, {"array": np.zeros(8), "sampling_rate": 8000, "path": path}):
        source = source_from_value(value)
        assert source is not None
        assert source.name == name
        assert "secret" not in source.label
