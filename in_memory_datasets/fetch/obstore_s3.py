"""Reading S3 with obstore, where it is installed, under the settings that s3fs found.

fsspec decides where a bucket is and who is asking: its configuration, the environment, profiles, roles. obstore only
reads what it is then told to. Its word counts where it succeeds and where the storage is busy or away; whatever else
it finds is asked of fsspec again, whose answer is the one that is reported.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.storage_failures import judge_storage_status

# Settings of s3fs that obstore is told, or that are no matter to one whole read.
_UNDERSTOOD = frozenset(
    {
        "anon",
        "client_kwargs",
        "config_kwargs",
        "endpoint_url",
        "key",
        "password",
        "profile",
        "secret",
        "token",
        "use_ssl",
    }
    | {"username", "default_block_size", "default_fill_cache", "default_cache_type", "max_concurrency"}
    | {"use_listings_cache", "listings_expiry_time", "max_paths", "cache_regions"}
)
_TIMES_AND_RETRIES = frozenset({"connect_timeout", "read_timeout", "retries"})
# obstore asks again five minutes before; botocore renews what ends within ten.
_LIFE_OF_LOGIN = timedelta(minutes=10)

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")

_lock = threading.Lock()
_stores: dict[tuple[str, str, float], Any] = {}
_pid: int | None = None


@dataclass(frozen=True, slots=True)
class ObstoreObject:
    """One object in a bucket that obstore can read."""

    _store: Any
    _key: str
    _place: tuple[str, str, float]

    def stat(self) -> int | None:
        """Measure it in bytes; None where fsspec is to be asked.

        Raises:
            AttemptFailed: Its storage is busy, or does not answer.
        """
        import obstore

        meta = _call(obstore.head, self._store, self._key)
        return None if meta is None else int(meta["size"])

    def read(self) -> bytes | None:
        """Read it whole; None where fsspec is to be asked.

        Raises:
            AttemptFailed: As above.
        """
        import obstore

        data: bytes | None = _call(
            lambda store, key: obstore.get(store, key).bytes().to_bytes(), self._store, self._key
        )
        return data

    def distrust(self) -> None:
        """Leave the bucket to fsspec, which could read what obstore could not."""
        _stores[self._place] = None


def find_obstore(fs: Any, path: str, timeout_seconds: float) -> ObstoreObject | None:
    """Give the object where obstore would read the same bytes as fsspec; None where fsspec is to read it.

    That is a file system of s3fs, with no setting but those understood here, a key that obstore does not write
    otherwise, and a process that was not forked from one that used obstore: it hangs there.
    """
    if type(fs).__module__.partition(".")[0] != "s3fs" or not _may_run_here():
        return None
    bucket, key, version = fs.split_path(path)
    if version is not None or bucket.startswith("arn:") or not bucket or not _is_plain(key):
        return None
    place = (fs.fs_token if hasattr(fs, "fs_token") else fs._fs_token, bucket, timeout_seconds)
    if place not in _stores:
        with _lock:
            if place not in _stores:
                _stores[place] = _make_store(fs, bucket, timeout_seconds)
    store = _stores[place]
    return None if store is None else ObstoreObject(store, key, place)


def _may_run_here() -> bool:
    global _pid
    if _pid is None:
        # A child that finds it imported may have it from its parent, and with it the threads that are not there.
        is_inherited = "obstore" in sys.modules and multiprocessing.parent_process() is not None
        try:
            import obstore  # noqa: F401
        except ImportError:
            is_inherited = True
        _pid = -1 if is_inherited else os.getpid()
    return _pid == os.getpid()


def _is_plain(key: str) -> bool:
    """Tell whether obstore asks for this very key: empty parts it drops, and dots it refuses."""
    return key.isprintable() and not any(part in ("", ".", "..") for part in key.split("/"))


def _make_store(fs: Any, bucket: str, timeout_seconds: float) -> Any:
    settings = _settings_of(fs)
    if settings is None:
        return None
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    try:
        return S3Store(
            bucket,
            client_options={"allow_http": True, "timeout": timedelta(seconds=timeout_seconds)},
            retry_config={"max_retries": 0},  # attempts are counted and spaced by whoever calls
            **settings,
        )
    except (BaseError, ValueError):  # it is no more than a faster way
        return None


def _settings_of(fs: Any) -> dict[str, Any] | None:
    """Take what s3fs found in its configuration, the environment and profiles; None where there is more to it."""
    options = fs.storage_options
    of_client, of_config = options.get("client_kwargs") or {}, options.get("config_kwargs") or {}
    if not (options.keys() <= _UNDERSTOOD and of_client.keys() <= {"endpoint_url", "region_name"}):
        return None
    if options.get("cache_regions") or not of_config.keys() <= _TIMES_AND_RETRIES:
        return None
    try:
        meta = fs.connect().meta
        region, endpoint = meta.region_name, meta.endpoint_url
        is_encrypted = endpoint.startswith("https:")
        if meta.config.s3 or (is_encrypted and fs.session.get_config_variable("ca_bundle")):
            return None
        provider = None if fs.anon else _login_of(fs)
    except Exception:  # noqa: BLE001 - whatever it is, fsspec meets it next and it is reported then
        return None
    if not fs.anon and provider is None:
        return None
    # obstore prefers this variable to what it is told.
    if os.environ.get("AWS_ENDPOINT_URL_S3", endpoint) != endpoint:
        return None
    is_amazon = (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    if region in (None, "aws-global"):
        if is_amazon:
            return None
        region = "us-east-1"
    return {
        "endpoint": endpoint,
        "region": region,
        "virtual_hosted_style_request": False,
        "skip_signature": bool(fs.anon),
        "request_payer": False,
        **({} if provider is None else {"credential_provider": provider}),
    }


def _login_of(fs: Any) -> Callable[[], Mapping[str, Any]] | None:
    """Give what hands obstore the login of s3fs, renewed as often as it has to be; None where there is none."""
    if fs.key is not None:
        key, secret, token = fs.key, fs.secret, fs.token
        return lambda: {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}
    loop, login = fs.loop, _on_loop(fs.loop, fs.session.get_credentials)
    if login is None:
        return None

    def renew() -> Mapping[str, Any]:
        now = _on_loop(loop, login.get_frozen_credentials)
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(timezone.utc) + _LIFE_OF_LOGIN,
        }

    return renew


def _on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> Any:
    from fsspec.asyn import sync

    return sync(loop, function)


def _call(function: Callable[[Any, str], Any], store: Any, key: str) -> Any:
    """Call obstore; None for a failure that is fsspec's to judge.

    Raises:
        AttemptFailed: It is one that passes.
    """
    from obstore.exceptions import BaseError

    try:
        return function(store, key)
    except (BaseError, OSError, ValueError) as error:
        failure = _judge_transient(str(error))
        if failure is not None:
            raise failure from error
        return None


def _judge_transient(message: str) -> AttemptFailed | None:
    """Read a failure that may pass out of obstore's message, which is all it tells; None for another one."""
    if match := _STATUS.search(message):
        failure = judge_storage_status(int(match[1]))
        return failure if failure is not None and failure.transient else None
    kind = match[1] if (match := _KIND.search(message)) else ""
    if kind == "Timeout":
        return AttemptFailed("timeout", "the storage did not answer in time", transient=True)
    if kind == "Interrupted" or "IncompleteBody" in message:
        return AttemptFailed("truncated", "what the storage sent broke off", transient=True)
    if kind == "Connect" and "ConnectionRefused" in message:
        return AttemptFailed("refused", "the storage cannot be reached", transient=True)
    if kind == "Request" and ("IncompleteMessage" in message or "ConnectionReset" in message):
        return AttemptFailed("reset", "the connection to the storage broke", transient=True)
    return None
