"""Local files and fsspec URLs; every function here blocks and belongs in a thread."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Any

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.schema import strip_credentials

# Protocols whose URLs name no network host of their own choice: where they connect to is fixed, or set by the user.
# Others (http inside a chain, ftp, sftp, smb, ...) would lead past the address guard.
_OBJECT_STORES = {"abfs", "abfss", "adl", "az", "gcs", "gdrive", "gs", "hf", "lakefs", "oci", "oss", "s3", "s3a"}
_ON_THIS_MACHINE = {"dir", "file", "local", "memory", "blockcache", "cached", "filecache", "simplecache"}
_ARCHIVES = {"bz2", "gzip", "libarchive", "tar", "zip"}
_GUARDED_PROTOCOLS = frozenset(_OBJECT_STORES | _ON_THIS_MACHINE | _ARCHIVES)


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


def stat_object(url: str, allow_private_addresses: bool) -> int | None:
    """Measure what an fsspec URL names, in bytes; None where its storage does not say.

    Raises:
        AttemptFailed: There is no such object, or its storage cannot be used.
    """
    fs, path = _open_storage(url, allow_private_addresses)
    try:
        info = fs.info(path)
    except Exception as error:  # back ends raise whatever their own libraries raise
        raise judge_file_error(error) from error
    if info.get("type") == "directory":
        raise AttemptFailed("unreadable", "it is a directory, expected an object")
    size = info.get("size")
    return None if size is None else int(size)


def read_object(url: str, size: int | None, max_bytes: int, allow_private_addresses: bool) -> bytes:
    """Read what an fsspec URL names; at most `max_bytes` + 1 of it where its size is not known.

    Raises:
        AttemptFailed: It cannot be read.
    """
    fs, path = _open_storage(url, allow_private_addresses)
    try:
        if size is not None:
            return bytes(fs.cat_file(path))
        with fs.open(path, "rb") as file:
            return bytes(file.read(max_bytes + 1))
    except Exception as error:  # as above
        raise judge_file_error(error) from error


def find_protocols(url: str) -> list[str]:
    """Name every protocol of an fsspec URL, chained ones included.

    Example:
        >>> find_protocols("zip://a.jpg::simplecache::s3://bucket/x.zip"), find_protocols("zip://a.jpg::/data/x.zip")
        (['zip', 'simplecache', 's3'], ['zip'])
    """
    parts = url.split("::")
    protocols = []
    for part in parts:
        if "://" in part:
            protocols.append(part.partition("://")[0].lower())
        elif part is not parts[-1]:
            protocols.append(part.lower())
    return protocols


def _open_storage(url: str, allow_private_addresses: bool) -> tuple[Any, str]:
    import fsspec

    protocols = find_protocols(url)
    if not allow_private_addresses:
        for protocol in protocols:
            if protocol not in _GUARDED_PROTOCOLS:
                raise AttemptFailed(
                    "blocked_address",
                    f"the address guard does not see where {protocol}:// connects to; "
                    "FetchOptions(allow_private_addresses=True) lets it through",
                )
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise AttemptFailed(
            "missing_extra",
            f"{protocols[0]}:// needs a package that is not installed ({error.args[0] or error.__cause__})",
        ) from error
    except ValueError as error:
        raise AttemptFailed("bad_url", f"not a usable storage URL ({strip_credentials(str(error))})") from error
    except Exception as error:  # back ends raise whatever their own libraries raise
        raise judge_file_error(error) from error
    return fs, str(path)
