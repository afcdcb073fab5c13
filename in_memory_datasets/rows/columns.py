"""A column as the user names it -> its value in a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

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
        kind: What it is to hold: "media" or "captions".
        roots: The dataset's own columns that are needed for it; None where a callable may look at all of them.
        path: Fields to follow inside the root.
        function: The user's callable, if that is what the column is.
    """

    name: str
    kind: Literal["media", "captions"]
    roots: tuple[str, ...] | None
    path: tuple[str, ...] = ()
    function: Callable[[Mapping[str, Any]], Any] | None = None

    @property
    def plain_root(self) -> str | None:
        """Name the dataset's column that is this one as it stands; None where there is more to it."""
        is_plain = self.function is None and not self.path and self.roots is not None and len(self.roots) == 1
        return self.roots[0] if is_plain and self.roots else None

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
        return Column(getattr(spec, "__name__", "a callable"), kind, None, (), spec)
    known = [str(name) for name in names]
    argument = "txt_col" if kind == "captions" else "the media column"
    if not isinstance(spec, str) or not spec:
        raise ConfigError(f"{argument}={spec!r}: expected a column name, a dotted path or a callable of the row")
    if spec in known:
        return Column(spec, kind, (spec,))
    parts = spec.split(".")
    for length in range(len(parts) - 1, 0, -1):
        root = ".".join(parts[:length])
        if root in known:
            return Column(spec, kind, (root,), tuple(parts[length:]))
    if kind == "captions":
        numbered = [
            (int(match[1]), name) for name in known if (match := re.fullmatch(rf"{re.escape(spec)}_?(\d+)", name))
        ]
        if numbered:
            return Column(spec, kind, tuple(name for _, name in sorted(numbered)))
    raise ConfigError(
        f"there is no column {spec!r} for the {kind}: the columns are {', '.join(map(repr, known)) or 'none'}"
        + (f"; did you mean {guess!r}?" if (guess := _nearest(spec, known, kind)) else "")
    )


def check_types(column: Column, schema: pa.Schema) -> None:
    """Refuse a dotted path whose fields the dataset's own types lack, and captions that are numbers.

    Raises:
        ConfigError: It cannot hold what it is to hold; lists the fields there are and the one probably meant.

    Example:
        >>> schema = pa.schema({"json": pa.struct({"text": pa.string()})})
        >>> check_types(find_column("json.raw", ["json"], kind="captions"), schema)
        Traceback (most recent call last):
        in_memory_datasets.errors.ConfigError: 'json.raw': there is no field 'raw' in it, only 'text'
    """
    for root in column.roots or ():
        kind = schema.field(root).type
        for name in column.path:
            while isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
                kind = kind.value_type
            if not pa.types.is_struct(kind):  # text may be JSON
                break
            fields = [kind.field(i).name for i in range(kind.num_fields)]
            if name not in fields:
                close = difflib.get_close_matches(name, fields, n=1)
                raise ConfigError(
                    f"{column.name!r}: there is no field {name!r} in it, only {', '.join(map(repr, fields))}"
                    + (f"; did you mean {close[0]!r}?" if close else "")
                )
            kind = kind.field(name).type
        if column.kind == "captions" and (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise ConfigError(f"column {column.name!r} holds {kind}, not captions: pass another one, or a callable")


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
