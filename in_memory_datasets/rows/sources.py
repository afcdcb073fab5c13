"""The shapes a media column can have, and the source in each."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np

from in_memory_datasets.errors import SampleError
from in_memory_datasets.rows.missing import is_missing
from in_memory_datasets.schema import Source, strip_credentials

# What stands in pages where others have the address of a picture.
_FOR_BROWSERS = frozenset({"about", "blob", "javascript", "mailto"})

# Addresses as nearly all are, of which a split would say nothing new; group 1 is the file's name.
_PLAIN_URL = re.compile(
    r"https?://[A-Za-z0-9.-]+(?::[0-9]+)?(?:/(?:[!\"$-.0->@-~]*/)*([!\"$-.0->@-~]*))?(?:[?#][!-~]*)?"
)


def source_from_value(value: Any) -> Source | None:
    """Find the source in one value of a media column.

    A value may be an http(s) or fsspec URL, a data: URL, a local path, encoded bytes, an HF `Image` or `Audio` value
    (`{"bytes", "path"}`, a PIL picture, `{"array", "sampling_rate"}`, a decoder object) or an array, also as lists of
    numbers. None, NaN, "" and empty mappings have none.

    Raises:
        SampleError: It is a number, a list of other things, or a mapping or URL that holds nothing of the kind.

    Example:
        >>> source_from_value("https://a.example/cat.jpg").kind, source_from_value({"bytes": b"...", "path": "x/a.wav"})
        ('url', Source(kind='bytes', value=b'...', name='a.wav'))
    """
    if type(value) is str and (plain := _PLAIN_URL.fullmatch(value)):
        return Source("url", value, plain[1] or "")
    if is_missing(value):
        return None
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, PurePath):
        return _from_path(os.fspath(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Source("bytes", bytes(value)) if len(value) else None
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, (list, tuple)):
        return _from_list(value)
    if isinstance(value, (int, float, np.generic)):
        what = f"{type(value).__name__} {value!r:.60} is no media"
        raise SampleError(f"{what}: expected a URL, a path, bytes or an array", reason="bad_row")
    return Source("object", value)


def _from_text(text: str) -> Source | None:
    text = str(text).strip()
    if not text:
        return None
    scheme = text.partition(":")[0].lower()
    if "://" in text or scheme == "data":
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SampleError(
                f"{strip_credentials(text)!r:.200} holds half a surrogate pair, which no URL can", reason="bad_url"
            ) from error
    if scheme in ("http", "https") and "://" in text:
        return Source("url", text, _name_of_url(text))
    if scheme == "data":
        return _from_data_url(text)
    if scheme in _FOR_BROWSERS and ":" in text:
        raise SampleError(f"{strip_credentials(text)!r:.200} is no URL of a kind that can be fetched", reason="bad_url")
    if scheme in ("file", "local") and "://" not in text and ":" in text:  # file:/path is one as well
        text = f"{scheme}://{text[len(scheme) + 1 :]}"
    if text.startswith("//"):
        return Source("url", f"https:{text}", _name_of_url(f"https:{text}"))
    if "://" in text:
        return Source("fsspec", text, text.partition("::")[0].rpartition("/")[2])
    return _from_path(text)


def _from_path(text: str) -> Source:
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError("it holds a NUL")
        return Source("path", os.path.expanduser(text), os.path.basename(text))
    except ValueError as error:
        raise SampleError(f"{text!r:.200} is no path: {error}", reason="bad_url") from error


def _from_mapping(value: Mapping[Any, Any]) -> Source | None:
    path: Any = value.get("path")
    data: Any = value.get("bytes")
    if not (is_missing(path) or isinstance(path, (str, bytes, PurePath))):
        raise SampleError(f"'path' is of type {type(path).__name__}, expected text", reason="bad_row")
    path = "" if is_missing(path) else os.fsdecode(path)
    name = _name_of_origin(path)
    if not is_missing(data):
        try:
            data = bytes(data if isinstance(data, list) else memoryview(data))
        except (TypeError, ValueError) as error:
            raise SampleError(f"'bytes' is of type {type(data).__name__}, expected bytes", reason="bad_row") from error
        return Source("bytes", data, name) if data else None
    if not is_missing(value.get("array")):
        return Source("object", value, name)
    if path:
        return _from_text(path)
    if not value or any(field in value for field in ("bytes", "path", "array")):
        return None
    raise SampleError(
        f"a mapping of {', '.join(map(repr, value))} is no media: expected 'bytes', 'path' or 'array'", reason="bad_row"
    )


def _from_list(value: list[Any] | tuple[Any, ...]) -> Source | None:
    """Take lists of numbers for the array they were before Arrow."""
    if not value:
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "buif":
        raise SampleError(
            f"a list of {len(value)} {type(value[0]).__name__} is no media: choose one of them, for instance with a "
            "callable such as lambda row: row['images'][0]",
            reason="bad_row",
        )
    return Source("object", array)


def _from_data_url(text: str) -> Source:
    """Decode the bytes inside a data: URL. Source: RFC 2397."""
    head, comma, body = text[5:].partition(",")
    kind = head.partition(";")[0]
    try:
        data = base64.b64decode(unquote_to_bytes(body)) if head.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise SampleError(f"a data: URL of {len(text)} characters is damaged: {error}", reason="bad_url") from error
    if not comma or not data:
        raise SampleError(f"a data: URL of {len(text)} characters holds no data", reason="empty")
    return Source("bytes", data, f"data{mimetypes.guess_extension(kind) or ''}")


def _name_of_origin(path: str) -> str:
    """Name the file that inline media came from; its address may be signed, and labels are shown and stored."""
    is_url = "://" in path or path.startswith("//")
    path = strip_credentials(path)  # before as well: what is no URL to all is split elsewhere
    return strip_credentials(_name_of_url(path.partition("::")[0]) if is_url else os.path.basename(path))


def _name_of_url(url: str) -> str:
    try:
        return urlsplit(url).path.rpartition("/")[2]
    except ValueError:  # the fetcher will say what is wrong with it
        return ""
