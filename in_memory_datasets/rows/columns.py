"""A column as the user names it -> its value in a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows.captions import parse_json

ColumnSpec = str | Callable[[Mapping[str, Any]], Any]

# What columns of one kind are called in published datasets; for saying which one was probably meant.
_USUAL_NAMES = {
    "media": ("image_url", "url", "image", "img", "jpg", "png", "audio", "flac", "wav", "mp3", "file", "path"),
    "captions": ("caption", "captions", "text", "txt", "sentences", "sentences_raw", "raw", "alt_text", "json"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column, found.

    Attributes:
        name: What the user calls it.
        roots: The dataset's own columns that are needed for it; None where a callable may look at all of them.
        path: Fields to follow inside the root.
        function: The user's callable, if that is what the column is.
    """

    name: str
    roots: tuple[str, ...] | None
    path: tuple[str, ...] = ()
    function: Callable[[Mapping[str, Any]], Any] | None = None

    def value_in(self, row: Mapping[str, Any]) -> Any:
        """Give the column's value in one row; None where the row lacks it."""
        if self.function is not None:
            return self.function(row)
        assert self.roots is not None
        if len(self.roots) > 1:
            return [row[root] for root in self.roots if row.get(root) is not None]
        return _follow(row.get(self.roots[0]), self.path)


def find_column(spec: ColumnSpec, names: Iterable[str], *, kind: Literal["media", "captions"]) -> Column:
    """Find the column that is meant, by name, by dotted path, or, of captions, by number (caption_1, caption_2, ...).

    Raises:
        ConfigError: There is none; lists those there are and the one probably meant.

    Example:
        >>> find_column("json.text", ["flac", "json"], kind="captions").path
        ('text',)
        >>> find_column("caption", ["file_name", "caption_2", "caption_1"], kind="captions").roots
        ('caption_1', 'caption_2')
    """
    if callable(spec):
        return Column(getattr(spec, "__name__", "a callable"), None, (), spec)
    known = [str(name) for name in names]
    argument = "txt_col" if kind == "captions" else "the media column"
    if not isinstance(spec, str) or not spec:
        raise ConfigError(f"{argument}={spec!r}: expected a column name, a dotted path or a callable of the row")
    if spec in known:
        return Column(spec, (spec,))
    parts = spec.split(".")
    for length in range(len(parts) - 1, 0, -1):
        root = ".".join(parts[:length])
        if root in known:
            return Column(spec, (root,), tuple(parts[length:]))
    if kind == "captions":
        numbered = [
            (int(match[1]), name) for name in known if (match := re.fullmatch(rf"{re.escape(spec)}_?(\d+)", name))
        ]
        if numbered:
            return Column(spec, tuple(name for _, name in sorted(numbered)))
    raise ConfigError(
        f"there is no column {spec!r} for the {kind}: the columns are {', '.join(map(repr, known)) or 'none'}"
        + (f"; did you mean {guess!r}?" if (guess := _nearest(spec, known, kind)) else "")
    )


def _nearest(spec: str, known: list[str], kind: str) -> str | None:
    close = difflib.get_close_matches(spec, known, n=1)
    usual = [name for name in _USUAL_NAMES[kind] if name in known]
    return next(iter([*close, *usual]), None)


def _follow(value: Any, path: tuple[str, ...]) -> Any:
    """Follow field names into mappings, lists of them, and JSON text of them."""
    for position, name in enumerate(path):
        if isinstance(value, (str, bytes)):
            value = parse_json(value)
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, (list, tuple)):
            return [_follow(item, path[position:]) for item in value]
        else:
            return None
    return value
