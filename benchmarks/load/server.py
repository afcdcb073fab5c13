"""A server that costs as little as one in Python can, in a process and an interpreter of its own.

    python -m benchmarks.load.server --latency 0.02 DIRECTORY ...   # prints its port; ends when its input does

It answers on 127.0.0.1, and with `--hosts 4` also on 127.0.0.2 to 127.0.0.4, as hosts of their own.

Bodies are read before it listens, whole answers are made of them, and an answer is one look-up, one timer and one
write. `/DIRECTORY-NAME/FILE` is a file, whatever query follows; `/-/usage` tells what it did so far and what that cost.
Only the standard library is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
from functools import partial

_USAGE = b"/-/usage"
_END = b"\r\n\r\n"
_SEND_BUFFER_BYTES = 2**20  # most answers go out in one call
_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class _Site:
    """Answers by path, and what was asked so far."""

    def __init__(self, directories: list[str], latency_seconds: float) -> None:
        self.latency_seconds = latency_seconds
        self.num_requests = 0
        self.first_request: float | None = None
        self.num_connections = self.most_connections = 0
        self.answers: dict[bytes, bytes] = {}
        for directory in directories:
            for entry in os.scandir(directory):
                if entry.name.endswith((".npy", ".json")):
                    continue
                with open(entry.path, "rb") as file:
                    body = file.read()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
                path = f"/{os.path.basename(directory.rstrip('/'))}/{entry.name}"
                self.answers[path.encode()] = f"{head}\r\n".encode() + body

    def usage(self) -> bytes:
        """Tell what was asked and what it cost, and begin to count connections anew."""
        told = {
            "cpu_seconds": time.process_time(),
            "num_requests": self.num_requests,
            "first_request": self.first_request,
            "most_connections": self.most_connections,
        }
        self.most_connections, self.first_request = self.num_connections, None
        body = json.dumps(told).encode()
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One connection; requests on it are answered one after the other."""

    def __init__(self, site: _Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site, self._loop = site, loop
        self._transport: asyncio.Transport
        self._unread = b""
        self._timer: asyncio.TimerHandle | None = None
        self._is_counted = False  # from its first request on; who asks for the usage is no client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=2**26)

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.num_connections -= self._is_counted
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        data = self._unread + data if self._unread else data
        if not data.endswith(_END):
            self._unread = data
            return
        self._unread = b""
        path = data[4 : data.index(b" ", 4)].partition(b"?")[0]
        site = self._site
        if path == _USAGE:
            self._transport.write(site.usage())
            self._transport.close()
            return
        if site.first_request is None:
            site.first_request = time.monotonic()
        if not self._is_counted:
            self._is_counted = True
            site.num_connections += 1
            site.most_connections = max(site.most_connections, site.num_connections)
        site.num_requests += 1
        answer = site.answers.get(path, _MISSING)
        self._timer = self._loop.call_later(site.latency_seconds, self._transport.write, answer)


async def _serve(site: _Site, num_hosts: int) -> None:
    loop = asyncio.get_running_loop()
    port, servers = 0, []
    for number in range(1, num_hosts + 1):
        listener = socket.create_server((f"127.0.0.{number}", port), backlog=4096)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # which connections inherit
        port = listener.getsockname()[1]
        servers.append(await loop.create_server(partial(_Connection, site, loop), sock=listener))
    over = asyncio.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    print(port, flush=True)
    await over.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, required=True, help="seconds from a request to its answer")
    parser.add_argument("--hosts", type=int, default=1, help="how many addresses it answers on")
    parser.add_argument("directories", nargs="*")
    options = parser.parse_args()
    asyncio.run(_serve(_Site(options.directories, options.latency), options.hosts))
