"""Local files; every function here blocks and belongs in a thread."""

from __future__ import annotations

import asyncio
import os
import stat

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.schema import strip_credentials


def stat_file(path: str) -> int:
    """Measure a local file in bytes.

    Raises:
        AttemptFailed: There is none, it may not be read, or it is not a regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise judge_file_error(error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise AttemptFailed("unreadable", f"it is {kind}, expected a regular file")
    return status.st_size


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a local file whole, and no more than `max_bytes` + 1 of it.

    Raises:
        AttemptFailed: It cannot be read.
    """
    try:
        # O_NONBLOCK: what was a file a moment ago may be a pipe by now, whose opening would wait for a writer.
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            size = os.fstat(file.fileno()).st_size
            chunks: list[bytes] = []
            left = min(size, max_bytes + 1)
            while left > 0 and (chunk := file.read(left)):
                chunks.append(chunk)
                left -= len(chunk)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except (OSError, ValueError) as error:
        raise judge_file_error(error) from error


def judge_file_error(error: BaseException) -> AttemptFailed:
    """Turn what the system or a storage back end raised into a failure with a reason."""
    words = strip_credentials(" ".join(str(error).split())[:300]) or type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return AttemptFailed("not_found", "there is no such file")
    if isinstance(error, PermissionError):
        return AttemptFailed("permission", f"it may not be read ({words})")
    if isinstance(error, IsADirectoryError):
        return AttemptFailed("unreadable", "it is a directory, expected a regular file")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return AttemptFailed("timeout", f"the storage did not answer in time ({words})", transient=True)
    if isinstance(error, ConnectionError):
        return AttemptFailed("reset", f"the connection to the storage broke ({words})", transient=True)
    return AttemptFailed(
        "unreadable", f"it cannot be read ({type(error).__name__}: {words})", transient=isinstance(error, OSError)
    )


def find_local_path(url: str) -> str | None:
    """Take the path from a file:// or local:// URL; None for every other one."""
    from fsspec.implementations.local import LocalFileSystem

    if url.startswith(("file://", "local://")):
        return str(LocalFileSystem._strip_protocol(url))
    return None
