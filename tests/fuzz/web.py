"""Fuzz targets of what strangers write on the web: addresses in datasets, and the answers of servers."""

from __future__ import annotations

import asyncio
import base64
import random
import socket
import tempfile
from contextlib import ExitStack, suppress
from unittest import mock
from urllib.parse import unquote_plus, urlsplit

import aiohttp
from yarl import URL

from in_memory_datasets.errors import FetchError, SampleError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.http import _find_target, parse_url
from in_memory_datasets.fetch.http_failures import judge_status
from in_memory_datasets.fetch.opt_out import DIRECTIVES, find_opt_out, find_product
from in_memory_datasets.fetch.retry import RETRY_AFTER_CAP_SECONDS, choose_delay, parse_retry_after
from in_memory_datasets.rows.sources import source_from_value
from in_memory_datasets.schema import REASONS, FetchOptions, Source, host_of, strip_credentials

_MARK, _SECRET = "\x01", "hUnTeR-2"
_SECRET_NAMES = ("signature", "credential", "token", "secret", "passw", "apikey", "api_key", "accesskey", "access_key")
_OPTIONS = FetchOptions(timeout=30.0, retries=0, max_bytes=2_000)
_SOMEWHERE = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", 80))]


def addresses(data: bytes) -> None:
    """Read what may be an address, and hide its secrets; each character U+0001 stands for one."""
    marked = data.decode("utf-8", "surrogateescape")
    text = marked.replace(_MARK, _SECRET)
    assert isinstance(host_of(text), str)
    for url in (_usable_url(text), _target(text)):
        if url is not None:
            assert url.scheme in ("http", "https")
            assert url.raw_host
            assert isinstance(str(url), str)
    shown = [strip_credentials(text)]
    for value in (text, {"path": text, "bytes": b"GIF89a"}):
        try:
            source = source_from_value(value)
        except SampleError as error:
            _check_reason(error.reason)
            shown.append(str(error))
        else:
            if source is not None and source.kind in ("url", "fsspec", "bytes"):
                shown += [source.label, source.host]
    if marked.count(_MARK) == 1 and _SECRET not in marked and _holds_secret(text):
        assert not any(_SECRET in each for each in shown), shown


def headers(data: bytes) -> None:
    """Read the headers that decide whether, and when again, a file is asked for."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    product = find_product(lines[0])
    assert not any(character.isspace() for character in product)
    for agent in (product, "in-memory-datasets"):
        assert find_opt_out(lines, agent) in {None, *DIRECTIVES}
        assert find_opt_out([*lines, "nofollow, NoAI"], agent) is not None
    for line in lines:
        delay = choose_delay(1, parse_retry_after(line), random.Random(0))
        assert 0 <= delay <= RETRY_AFTER_CAP_SECONDS
        failure = judge_status(
            int.from_bytes(line[:2].encode("utf-8", "surrogateescape"), "big"), {"Retry-After": line}
        )
        assert failure is None or failure.reason in REASONS[1:]


def answers(data: bytes) -> None:
    """Fetch from a server that answers every request with these bytes."""
    secret = _SECRET
    while secret.encode() in data:  # as the fuzzer has learnt to have the server say
        secret += "!"
    requests, outcome = asyncio.run(_ask(data, _home(secret)))
    if isinstance(outcome, FetchError):
        _check_reason(outcome.reason)
        assert secret not in str(outcome)
    else:
        assert 0 < len(outcome) <= _OPTIONS.max_bytes
    ours = base64.b64encode(f"me:{secret}".encode())
    for request in requests:
        assert ours not in request or b"\r\nhost: a.example\r\n" in request.lower(), request


def _home(secret: str) -> str:
    return f"http://me:{secret}@a.example/x.jpg"


async def _ask(answer: bytes, url: str) -> tuple[list[bytes], bytes | FetchError]:
    requests: list[bytes] = []
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        handlers.add(handler)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = f"{directory}/socket"
        # Whatever host an answer redirects to is asked here: nothing leaves this process.
        connector = mock.Mock(side_effect=lambda **_: aiohttp.UnixConnector(path))
        stack.enter_context(mock.patch("aiohttp.TCPConnector", connector))
        stack.enter_context(mock.patch("socket.getaddrinfo", return_value=_SOMEWHERE))
        async with await asyncio.start_unix_server(serve, path):
            outcome: bytes | FetchError
            with Fetcher(_OPTIONS) as fetcher:
                try:
                    fetched = await asyncio.wrap_future(fetcher.submit(Source("url", url)))
                    fetched.release()
                    outcome = fetched.data
                except FetchError as error:
                    outcome = error
            # What connected at the last moment is accepted in the loop's next turns; a server that closes in between
            # leaves it open.
            for _ in range(10):
                await asyncio.sleep(0)
            while any(not handler.done() for handler in handlers):  # whose connections the client has let go of
                await asyncio.wait(handlers)
            return requests, outcome


def _check_reason(reason: str) -> None:
    assert reason in REASONS[1:], reason


def _usable_url(text: str) -> URL | None:
    try:
        return parse_url(text)
    except AttemptFailed as failure:
        _check_reason(failure.reason)
        return None


def _target(text: str) -> URL | None:
    home = URL(_home(_SECRET))
    try:
        target = _find_target(home, text)
    except AttemptFailed as failure:
        _check_reason(failure.reason)
        return None
    assert not target.raw_fragment
    assert target.origin() == home.origin() or _SECRET not in (target.password or "") or _SECRET in text
    return target


def _holds_secret(text: str) -> bool:
    """Tell whether any reader of URLs finds the secret where secrets are; what is taken for a path holds none."""
    if "://" not in text and not text.strip().startswith("//"):
        return False
    with suppress(ValueError):
        parts = urlsplit(text)
        if _SECRET in f"{parts.username} {parts.password}":
            return True
        for field in parts.query.replace(";", "&").split("&"):
            name, _, value = field.partition("=")
            name = unquote_plus(name).lower()
            if _SECRET in value and (name in ("sig", "key", "auth") or any(part in name for part in _SECRET_NAMES)):
                return True
    with suppress(ValueError, IndexError):
        url = URL(text)
        return _SECRET in f"{url.user} {url.password}"
    return False
