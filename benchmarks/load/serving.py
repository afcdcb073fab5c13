"""The server as its clients see it: started, asked what it cost, and its ceiling measured with a bare client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server did.

    Attributes:
        cpu_seconds: Its processor time.
        num_requests: What it was asked, this question aside.
        first_request: When it was first asked since the last look, as time.monotonic has it; None if it was not.
        most_connections: The most that were open at once since the last look.
    """

    cpu_seconds: float
    num_requests: int
    first_request: float | None
    most_connections: int


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        port: Where it answers, on 127.0.0.1.
        num_hosts: On how many addresses from there on.
    """

    port: int
    num_hosts: int = 1

    def urls(self, directory: Path, names: Sequence[str]) -> list[str]:
        """Give the addresses of files of one of its directories, from host to host in turns."""
        return [
            f"http://127.0.0.{1 + i % self.num_hosts}:{self.port}/{directory.name}/{name}"
            for i, name in enumerate(names)
        ]

    def usage(self) -> Usage:
        """Ask what it did so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/usage", timeout=60) as answer:
            return Usage(**json.load(answer))


@contextmanager
def serve(*directories: Path, latency_seconds: float, num_hosts: int = 1) -> Iterator[Server]:
    """Serve the files of directories for as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks.load.server", "--latency", str(latency_seconds)]
    command += ["--hosts", str(num_hosts)]
    with subprocess.Popen(
        [*command, *map(str, directories)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the server did not start (exit status {process.wait()})")
        try:
            yield Server(int(port), num_hosts)
        finally:
            process.stdin.close()


def drain(urls: Sequence[str], num_connections: int) -> float:
    """Fetch addresses over so many connections with a client that does nothing but read; give the seconds.

    It is no HTTP client: it counts bytes up to the length that the first answer's head names, and drops them.
    """
    paths = [url.split("/", 3)[3] for url in urls]
    port = int(urls[0].split("/", 3)[2].rpartition(":")[2])
    return asyncio.run(
        _drain([f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths], port, num_connections)
    )


async def _drain(requests: list[bytes], port: int, num_connections: int) -> float:
    loop = asyncio.get_running_loop()
    waiting = iter(requests)
    readers = []
    try:
        for _ in range(min(num_connections, len(requests))):
            _, reader = await loop.create_connection(lambda: _Reader(waiting, loop), "127.0.0.1", port)
            readers.append(reader)
        started = time.perf_counter()
        for reader in readers:
            reader.ask()
        await asyncio.gather(*(reader.over for reader in readers))
        return time.perf_counter() - started
    finally:
        for reader in readers:
            reader.close()
        await asyncio.gather(*(reader.gone for reader in readers))


class _Reader(asyncio.Protocol):
    def __init__(self, waiting: Iterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._waiting = waiting
        self._left = -1
        self._head = b""
        self.over: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(None)
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the server closed a connection"))

    def ask(self) -> None:
        request = next(self._waiting, None)
        if request is None:
            self.over.set_result(None)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            head, found, rest = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.over.set_exception(ConnectionError(head[:60].decode("latin-1")))
                return
            self._left = int(head.rpartition(b"Content-Length: ")[2].partition(b"\r")[0]) - len(rest)
            self._head = b""
        else:
            self._left -= len(data)
        if self._left == 0:
            self._left = -1
            self.ask()

    def close(self) -> None:
        self._transport.close()
