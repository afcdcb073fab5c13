"""Whatever bytes a server sends, the outcome is a body or a FetchError."""

from __future__ import annotations

import random
from collections.abc import Callable
from urllib.parse import quote

import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import REASONS, Source
from tests.web.hostile_server import HostileServer

HEADS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b; Expires=never\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Robots-Tag: bot: noai,,:\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: 9\r\n\r\nx\x9cK\x04\x00\x00b\x00b",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1]:x/%zz\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 No\r\nRetry-After: Wed, 32 Foo 99999 07:28:00 GMT\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
)


def mutate(head: bytes, rng: random.Random) -> bytes:
    data = bytearray(head)
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randint(1, 8)]
            case _:
                data[place:place] = rng.choice([b"\r\n", b"\x00", b"\xff\xfe", b": ", b"9" * 30, b"a" * 9000])
    return bytes(data)


def test_any_answer_is_a_body_or_a_fetch_error(server: HostileServer, make_fetcher: Callable[..., Fetcher]) -> None:
    rng = random.Random(0)
    fetcher = make_fetcher(timeout=0.5, concurrency=64, per_host=64)
    answers = [mutate(head, rng) for head in HEADS * 40]
    urls = [server.url(f"/garbage?b={quote(quote(answer.decode('latin-1')))}") for answer in answers]
    for answer, future in zip(answers, [fetcher.submit(Source("url", url)) for url in urls], strict=True):
        error = future.exception(30)
        if error is None:
            future.result().release()
        elif not isinstance(error, FetchError) or error.reason not in REASONS:
            pytest.fail(f"{answer!r} ended in {error!r}")
