"""The shapes a media column can have, and the source in each."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from in_memory_datasets.errors import SampleError
from in_memory_datasets.schema import Source


def source_from_value(value: Any) -> Source | None:
    """Find the source in one value of a media column.

    A value may be an http(s) or fsspec URL, a data: URL, a local path, encoded bytes, an HF `Image` or `Audio` value
    (`{"bytes", "path"}`, a PIL picture, `{"array", "sampling_rate"}`, a decoder object) or an array. None, "" and empty
    mappings have none.

    Raises:
        SampleError: A mapping or data: URL that holds nothing of the kind.

    Example:
        >>> source_from_value("https://a.example/cat.jpg").kind, source_from_value({"bytes": b"...", "path": "x/a.wav"})
        ('url', Source(kind='bytes', value=b'...', name='a.wav'))
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, PurePath):
        return Source("path", os.fspath(value), value.name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Source("bytes", bytes(value)) if len(value) else None
    if isinstance(value, Mapping):
        return _from_mapping(value)
    return Source("object", value)


def _from_text(text: str) -> Source | None:
    text = text.strip()
    if not text:
        return None
    scheme = text.partition(":")[0].lower()
    if scheme in ("http", "https") and "://" in text:
        return Source("url", text, _name_of_url(text))
    if scheme == "data":
        return _from_data_url(text)
    if text.startswith("//"):
        return Source("url", f"https:{text}", _name_of_url(f"https:{text}"))
    if "://" in text:
        return Source("fsspec", text, text.partition("::")[0].rpartition("/")[2])
    return Source("path", os.path.expanduser(text), os.path.basename(text))


def _from_mapping(value: Mapping[Any, Any]) -> Source | None:
    path = value.get("path")
    name = os.path.basename(os.fspath(path)) if path else ""
    if value.get("bytes") is not None:
        data = bytes(value["bytes"])
        return Source("bytes", data, name) if data else None
    if value.get("array") is not None:
        return Source("object", value, name)
    if path:
        return source_from_value(path)
    if not value or "bytes" in value or "path" in value:
        return None
    raise SampleError(
        f"a mapping of {', '.join(map(str, value))} is no media: expected 'bytes', 'path' or 'array'", reason="bad_row"
    )


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


def _name_of_url(url: str) -> str:
    try:
        return urlsplit(url).path.rpartition("/")[2]
    except ValueError:  # the fetcher will say what is wrong with it
        return ""
