"""Objects at fsspec URLs; every function here blocks and belongs in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.obstore_s3 import find_obstore
from in_memory_datasets.fetch.storage_failures import judge_storage_error, words_of

# Protocols whose URLs name no network host of their own choice: where they connect to is fixed, or set by the user.
# Others (http inside a chain, ftp, sftp, smb, ...) would lead past the address guard.
_OBJECT_STORES = {"abfs", "abfss", "adl", "az", "gcs", "gdrive", "gs", "hf", "lakefs", "oci", "oss", "s3", "s3a"}
_ON_THIS_MACHINE = {"dir", "file", "local", "memory", "blockcache", "cached", "filecache", "simplecache"}
_ARCHIVES = {"bz2", "gzip", "libarchive", "tar", "zip"}
_GUARDED_PROTOCOLS = frozenset(_OBJECT_STORES | _ON_THIS_MACHINE | _ARCHIVES)
_S3_PROTOCOLS = ("s3", "s3a")

# For calls that do not say how long they may take.
DEFAULT_TIMEOUT_SECONDS = 60.0


def stat_object(
    url: str, allow_private_addresses: bool, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> int | None:
    """Measure what an fsspec URL names, in bytes; None where its storage does not say.

    Args:
        timeout_seconds: After which a request to S3 is given up; other storages have times of their own.

    Raises:
        AttemptFailed: There is no such object, or its storage cannot be used.
    """
    fs, path = _open_storage(url, allow_private_addresses, timeout_seconds)
    quick = find_obstore(fs, path, timeout_seconds)
    if quick is not None and (length := quick.stat()) is not None:
        return length
    try:
        info = fs.info(path)
    except Exception as error:  # back ends raise whatever their own libraries raise
        raise judge_storage_error(error, url) from error
    if info.get("type") == "directory":
        raise AttemptFailed("unreadable", "it is a directory, expected an object")
    if quick is not None:
        quick.distrust()
    size = info.get("size")
    return None if size is None else int(size)


def read_object(
    url: str,
    size: int | None,
    max_bytes: int,
    allow_private_addresses: bool,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> bytes:
    """Read what an fsspec URL names; at most `max_bytes` + 1 of it where its size is not known.

    Args:
        timeout_seconds: As above.

    Raises:
        AttemptFailed: It cannot be read.
    """
    fs, path = _open_storage(url, allow_private_addresses, timeout_seconds)
    quick = find_obstore(fs, path, timeout_seconds) if size is not None else None
    if quick is not None and (data := quick.read()) is not None:
        return data
    try:
        if size is not None:
            data = bytes(fs.cat_file(path))
        else:
            with fs.open(path, "rb") as file:
                data = bytes(file.read(max_bytes + 1))
    except Exception as error:  # as above
        raise judge_storage_error(error, url) from error
    if quick is not None:
        quick.distrust()
    return data


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


def _open_storage(url: str, allow_private_addresses: bool, timeout_seconds: float) -> tuple[Any, str]:
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
    is_s3 = len(protocols) == 1 and protocols[0] in _S3_PROTOCOLS
    options = _options_for_s3(timeout_seconds) if is_s3 else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise AttemptFailed(
            "missing_extra",
            f"{protocols[0]}:// needs a package that is not installed ({error.args[0] or error.__cause__})",
        ) from error
    except ValueError as error:
        raise AttemptFailed("bad_url", f"not a usable storage URL ({words_of(error, url)})") from error
    except Exception as error:  # back ends raise whatever their own libraries raise
        raise judge_storage_error(error, url) from error
    if options and type(fs).__module__.partition(".")[0] == "s3fs":
        # These options make it an instance of our own. Asking for the size again is spared as well.
        fs.retries = fs.max_concurrency = 1
    return fs, str(path)


def _options_for_s3(timeout_seconds: float) -> dict[str, Any]:
    """Leave attempts and their time to us, but for what the user has set.

    s3fs makes five attempts of five each: a store that asks for fewer requests would get a hundred.
    """
    import fsspec

    set_by_user: dict[str, Any] = {}
    for protocol in _S3_PROTOCOLS:
        set_by_user.update(fsspec.config.conf.get(protocol, {}))
    of_config = set_by_user.get("config_kwargs") or {}
    if not isinstance(of_config, Mapping) or "retries" in of_config:
        return {}
    ours = {"connect_timeout": timeout_seconds, "read_timeout": timeout_seconds, "retries": {"max_attempts": 0}}
    return {"config_kwargs": {**ours, **of_config}}
