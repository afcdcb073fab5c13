"""The shapes a caption column can have, and the captions in each."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from in_memory_datasets.rows.missing import is_missing

# Fields of a mapping that hold captions, the best one first; "tokens" only where there is no text.
_TEXT_FIELDS = ("raw", "text", "caption", "captions", "sentence", "sentences")
_SURROGATE = re.compile("[\ud800-\udfff]")


def captions_from_value(value: Any) -> tuple[str, ...]:
    """Find the captions in one value of a caption column; their text stays unaltered.

    A value may be a string, a list of strings, a mapping with `raw` (or text, caption, ...), a mapping of lists, a list
    of such mappings, a list of lists of tokens (joined by blanks), JSON text of such a mapping or list, or the Python
    repr of a list of strings. None, NaN and empty shapes have no caption. Half a surrogate pair, which is no text and
    which UTF-8 cannot hold, becomes U+FFFD.

    Raises:
        TypeError: It is none of these.
        UnicodeDecodeError: It is bytes other than UTF-8, a ValueError.

    Source: WHATWG Infra Standard, scalar value strings.

    Example:
        >>> captions_from_value([{"raw": "A cake. ", "tokens": ["a", "cake"]}, {"raw": "Cutting a cake."}])
        ('A cake. ', 'Cutting a cake.')
        >>> captions_from_value('{"text": ["rain", "water"]}'), captions_from_value("['low', 'calm']")
        (('rain', 'water'), ('low', 'calm'))
        >>> captions_from_value([["a", "dog"], ["two", "dogs"]]), captions_from_value(None)
        (('a dog', 'two dogs'), ())
    """
    if _is_plain(value):
        return (value,)
    return tuple(_scalar_values(caption) for caption in _find(value))


def _is_plain(value: Any) -> bool:
    """Tell text that is a caption as it stands, as nearly all are; others are looked at more closely."""
    return (
        type(value) is str
        and value != ""
        and value[0] not in "{["
        and not value[0].isspace()
        and (value.isascii() or _SURROGATE.search(value) is None)
    )


def _scalar_values(text: str) -> str:
    text = str(text)  # numpy has a string type of its own
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


def _find(value: Any) -> tuple[str, ...]:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if is_missing(value):
        return ()
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_text(bytes(value).decode())
    if isinstance(value, Iterable):
        return tuple(caption for item in value for caption in _from_item(item))
    raise TypeError(f"{type(value).__name__} {value!r:.60} holds no captions")


def _from_item(item: Any) -> tuple[str, ...]:
    """Find the captions in one item of a list; a list of strings inside a list is one tokenised caption."""
    if isinstance(item, str):
        return (item,)
    is_list = isinstance(item, (list, tuple)) or (isinstance(item, np.ndarray) and item.ndim > 0)
    if is_list and len(item) and all(isinstance(token, str) for token in item):
        return (" ".join(item),)
    return _find(item)


def _from_mapping(value: Mapping[Any, Any]) -> tuple[str, ...]:
    for name in _TEXT_FIELDS:
        if value.get(name) is not None:
            return _find(value[name])
    tokens = value.get("tokens")
    if isinstance(tokens, str):
        return (tokens,)
    if tokens is not None:
        tokens = list(tokens)
        return _find([tokens] if all(isinstance(token, str) for token in tokens) else tokens)
    if not value or any(name in value for name in _TEXT_FIELDS):
        return ()
    raise TypeError(f"a mapping of {', '.join(map(repr, value))} holds no captions: expected 'raw' or 'text'")


def _from_text(text: str) -> tuple[str, ...]:
    """Take text as the caption it is, unless all of it is JSON or a Python list of captions."""
    start = text.lstrip()[:1]
    parsed = parse_json(text) if start in ("{", "[") else None
    if parsed is None and start == "[":
        parsed = _parse_python(text.strip())
    is_list_of_captions = isinstance(parsed, list) and all(isinstance(item, str) or _has_text(item) for item in parsed)
    if is_list_of_captions or _has_text(parsed):
        try:
            return _find(parsed)
        except TypeError:  # JSON of something else: the text itself is the caption
            return (text,)
    return (text,)


def _has_text(parsed: Any) -> bool:
    return isinstance(parsed, Mapping) and any(name in parsed for name in _TEXT_FIELDS)


def _parse_python(text: str) -> Any:
    """Read a Python literal; None for a caption that only begins with a bracket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python thinks of an escape in a caption is nobody's business
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def parse_json(text: str | bytes) -> Any:
    """Read JSON; None for text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
