"""What tells rows from others, the same in another process."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from in_memory_datasets.rows.columns import Column


def digest_of_column(column: Column) -> list[Any]:
    """Give what tells a column from another."""
    return [column.roots, column.path] if column.function is None else [hash_of(column.function)]


class IndigestibleError(Exception):
    """An object cannot be told from others, because it holds something that no process can hand on."""


def hash_of(value: Any) -> str:
    """Digest any object, a function with all that it refers to.

    Raises:
        IndigestibleError: It holds something that no process can hand on.
    """
    from datasets.fingerprint import Hasher

    try:
        return str(Hasher.hash(value))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise IndigestibleError(f"{type(error).__name__}: {error}") from error


def feed(digest: Any, value: Any) -> None:
    """Feed a value into a digest, with its type and length, so that no two values look alike."""
    if isinstance(value, Mapping):
        feed(digest, [item for pair in value.items() for item in pair])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(digest, item)
    elif isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__}{len(data)}:".encode())
        digest.update(data)
    elif value is None or isinstance(value, (bool, int, float)):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        digest.update(f"{array.dtype}{array.shape}:".encode())
        digest.update(hash_of(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    else:
        digest.update(hash_of(value).encode())


def made_of(stage: Any) -> Any:
    """Give how a stage of a stream is made, without how far somebody has read it: peeking makes it no other."""
    if isinstance(stage, (list, tuple)):
        return [made_of(item) for item in stage]
    state = getattr(stage, "__dict__", {})
    if "_state_dict" not in state:
        return stage
    return [type(stage).__qualname__, {name: made_of(state[name]) for name in sorted(state) if name != "_state_dict"}]
