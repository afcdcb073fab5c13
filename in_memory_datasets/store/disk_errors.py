"""What the system says when a disk does not do what is asked of it, in words that name the place and the next step."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from in_memory_datasets.errors import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(directory: Path | None, what: str = "cannot write the samples to") -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that names the directory and says what to do.

    Args:
        directory: Where it happens; None for shared memory.
        what: The message, up to the name of the place.

    Raises:
        StoreError: In place of an error of the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        place = "shared memory" if directory is None else str(directory)
        named = f" ({error.filename})" if error.filename and os.fspath(error.filename) != place else ""
        raise StoreError(f"{what} {place}: {error.strerror}{named}; {_next_step(error.errno)}") from error


def _next_step(number: int) -> str:
    if number in _FULL:
        return "make room there, and do the same again"
    if number in _FORBIDDEN:
        return "take a directory that you may write"
    return "take a directory on a local disk"
