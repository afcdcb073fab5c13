"""The shapes a caption column can have, and the captions in each."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Fields of a mapping that hold captions, the best one first; "tokens" only where there is no text.
_TEXT_FIELDS = ("raw", "text", "caption", "captions", "sentence", "sentences")


def captions_from_value(value: Any) -> tuple[str, ...]:
    """Find the captions in one value of a caption column; their text stays unaltered.

    A value may be a string, a list of strings, a mapping with `raw` (or text, caption, ...), a mapping of lists, a list
    of such mappings, a list of lists of tokens (joined by blanks), JSON text of such a mapping or list, or the Python
    repr of a list of strings. None and empty shapes have no caption.

    Raises:
        TypeError: It is none of these.

    Example:
        >>> captions_from_value([{"raw": "A cake. ", "tokens": ["a", "cake"]}, {"raw": "Cutting a cake."}])
        ('A cake. ', 'Cutting a cake.')
        >>> captions_from_value('{"text": ["rain", "water"]}'), captions_from_value("['low', 'calm']")
        (('rain', 'water'), ('low', 'calm'))
        >>> captions_from_value([["a", "dog"], ["two", "dogs"]]), captions_from_value(None)
        (('a dog', 'two dogs'), ())
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, (bytes, bytearray)):
        return _from_text(bytes(value).decode())
    if isinstance(value, Iterable):
        return tuple(caption for item in value for caption in _from_item(item))
    raise TypeError(f"{type(value).__name__} {value!r:.60} holds no captions")


def _from_item(item: Any) -> tuple[str, ...]:
    """Find the captions in one item of a list; a list of strings inside a list is one tokenised caption."""
    if isinstance(item, str):
        return (item,)
    if isinstance(item, Iterable) and not isinstance(item, (Mapping, bytes)):
        tokens = list(item)
        if all(isinstance(token, str) for token in tokens):
            return (" ".join(tokens),)
    return captions_from_value(item)


def _from_mapping(value: Mapping[Any, Any]) -> tuple[str, ...]:
    for name in _TEXT_FIELDS:
        if value.get(name) is not None:
            return captions_from_value(value[name])
    tokens = value.get("tokens")
    if tokens is not None:
        tokens = list(tokens)
        return captions_from_value([tokens] if all(isinstance(token, str) for token in tokens) else tokens)
    if not value or any(name in value for name in _TEXT_FIELDS):
        return ()
    raise TypeError(f"a mapping of {', '.join(map(str, value))} holds no captions: expected 'raw' or 'text'")


def _from_text(text: str) -> tuple[str, ...]:
    """Take text as the caption it is, unless all of it is JSON or a Python list of captions."""
    start = text.lstrip()[:1]
    if start in ("{", "["):
        parsed = parse_json(text)
        if isinstance(parsed, dict) and any(name in parsed for name in _TEXT_FIELDS):
            return _from_mapping(parsed)
        if parsed is None and start == "[":
            try:
                parsed = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):  # a caption that begins with a bracket
                parsed = None
        if isinstance(parsed, list) and parsed and all(isinstance(item, str) for item in parsed):
            return tuple(parsed)
    return (text,)


def parse_json(text: str | bytes) -> Any:
    """Read JSON; None for text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
