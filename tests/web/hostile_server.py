"""A real HTTP server on loopback that misbehaves on request, each path in its own way."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it came over the wire."""

    target: str
    headers: dict[str, str]

    @property
    def parts(self) -> list[str]:
        return urlsplit(self.target).path.strip("/").split("/")

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)


def make_body(num_bytes: int) -> bytes:
    """Make the body that /ok/N serves."""
    return (b"0123456789abcdef" * (num_bytes // 16 + 1))[:num_bytes]


class HostileServer:
    """Serve on 127.0.0.1 from a thread of its own; a context manager.

    Attributes:
        files: What /file/NAME serves: a body, and the headers besides its length.
        places: Where /place/NAME redirects to.
        requests: Every request, in order of arrival.
        num_connections: Connections accepted so far.
        num_open_at_most: The most requests to /gate that were under way at once, by Host header; "" for all.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile-server", daemon=True)
        self._seen: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._handlers: set[asyncio.Task[None]] = set()
        self.files: dict[str, tuple[bytes, tuple[str, ...]]] = {}
        self.places: dict[str, str] = {}
        self.requests: list[Request] = []
        self.num_connections = 0
        self.num_open_at_most: Counter[str] = Counter()
        self.stalled = threading.Semaphore(0)

    def __enter__(self) -> HostileServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}/{path.lstrip('/')}"

    def wait_for_stalls(self, count: int) -> None:
        """Wait until `count` requests hang."""
        for _ in range(count):
            assert self.stalled.acquire(timeout=10), "requests that should hang never came"

    def drop_connections(self) -> None:
        """Close the server's end of every connection."""
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(10)

    async def _start(self) -> None:
        self._never = asyncio.Event()
        self._gates: dict[int, asyncio.Event] = {}
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls, backlog=512, limit=2**20)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        await self._drop()

    async def _drop(self) -> None:
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.num_connections += 1
        try:
            while True:
                first_byte = await reader.readexactly(1)
                if first_byte == b"\x16" and not self._tls:  # a TLS greeting
                    raise ConnectionResetError
                head = (first_byte + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                request = Request(first.split(" ")[1], headers)
                self.requests.append(request)
                handler: Callable[[Request, asyncio.StreamWriter], Awaitable[None]] = getattr(
                    self, "_serve_" + request.parts[0].replace("-", "_"), self._serve_missing
                )
                await handler(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, body: bytes, *headers: str, status: int = 200) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)

    @staticmethod
    async def _drain(writer: asyncio.StreamWriter) -> None:
        """Wait until more can be sent, and let others have a turn: once TLS is ending, drain() alone never waits."""
        await writer.drain()
        await asyncio.sleep(0)

    async def _stall(self) -> None:
        self.stalled.release()
        await self._never.wait()

    async def _serve_missing(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, b"no such path", status=404)

    async def _serve_ok(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, make_body(int(request.parts[1])))

    async def _serve_file(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/file/NAME/... answers with one of `files`."""
        body, headers = self.files[request.parts[1]]
        self._answer(writer, body, *headers)

    async def _serve_file_once_allowed(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/file-once-allowed/STATUS/TIMES/NAME?h=... answers STATUS so many times, and with a file from then on."""
        self._seen[request.target] += 1
        if self._seen[request.target] <= int(request.parts[2]):
            self._answer(writer, b"not now", *request.query.get("h", ()), status=int(request.parts[1]))
        else:
            body, headers = self.files[request.parts[3]]
            self._answer(writer, body, *headers)

    async def _serve_file_of_length(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/file-of-length/N/NAME says that a file has N bytes, and sends all that it has."""
        body, headers = self.files[request.parts[2]]
        lines = ["HTTP/1.1 200 OK", f"Content-Length: {request.parts[1]}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + body)
        if int(request.parts[1]) > len(body):
            await writer.drain()
            writer.close()
            raise ConnectionResetError

    async def _serve_header(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/header?h=Name: value&h=... answers with these headers."""
        self._answer(writer, b"with headers", *request.query["h"])

    async def _serve_target(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, request.target.encode())

    async def _serve_status(self, request: Request, writer: asyncio.StreamWriter) -> None:
        status = int(request.parts[1])
        self._answer(writer, b"" if status in (204, 304) else b"an error page", status=status)

    async def _serve_flaky(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/flaky/STATUS/TIMES?h=... answers STATUS so many times, and 200 from then on."""
        self._seen[request.target] += 1
        if self._seen[request.target] <= int(request.parts[2]):
            self._answer(writer, b"not now", *request.query.get("h", ()), status=int(request.parts[1]))
        else:
            self._answer(writer, b"at last")

    async def _serve_empty(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, b"")

    async def _serve_silence(self, request: Request, writer: asyncio.StreamWriter) -> None:
        await self._stall()

    async def _serve_no_body(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        await self._stall()

    async def _serve_trickle(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/trickle/STAGE sends a byte a second, of the headers or of the body."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        if request.parts[1] == "body":
            writer.write(head)
            head = bytes(1000)
        for byte in head:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)

    async def _serve_endless_headers(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: and more\r\n" * 1000)
            await self._drain(writer)

    async def _serve_endless_continue(self, request: Request, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def _serve_slow_headers(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await self._stall()

    async def _serve_slow_body(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        await self._stall()

    async def _serve_slow_once(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._seen[request.target] += 1
        if self._seen[request.target] == 1:
            await self._stall()
        self._answer(writer, b"at last")

    async def _serve_short(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/short/TIMES closes in the middle of the body so many times."""
        self._seen[request.target] += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        if self._seen[request.target] > int(request.parts[1]):
            writer.write(make_body(1000))
        else:
            writer.write(bytes(500))
            await writer.drain()
            writer.close()
            raise ConnectionResetError

    async def _serve_reset(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/reset/STAGE sends a TCP reset before the headers or in the body."""
        if request.parts[1] == "body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
            await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionResetError

    async def _serve_until_close(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/until-close/N has no length: the end of the connection ends the body."""
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + make_body(int(request.parts[1])))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        raise ConnectionResetError

    async def _serve_chunked(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/chunked/N/SIZE sends N bytes in chunks of SIZE."""
        body, size = make_body(int(request.parts[1])), int(request.parts[2])
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), size):
            chunk = body[start : start + size]
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def _serve_endless(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n%b\r\n" % bytes(0x10000))
            await self._drain(writer)

    async def _serve_broken_chunk(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nnonsense\r\n")
        await self._stall()

    async def _serve_gzip(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/gzip/N is a gzip of N zeros, though nobody asked for one."""
        self._answer(writer, gzip.compress(bytes(int(request.parts[1])), mtime=0), "Content-Encoding: gzip")

    async def _serve_broken_gzip(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, b"this is no gzip at all", "Content-Encoding: gzip")

    async def _serve_garbage(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(unquote(request.query["b"][0]).encode("latin-1"))
        await writer.drain()
        writer.close()
        raise ConnectionResetError

    async def _serve_chain(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/chain/N redirects N times, relatively, and then serves 100 bytes."""
        left = int(request.parts[1])
        location = f"/chain/{left - 1}" if left > 1 else "/ok/100"
        self._answer(writer, b"elsewhere", f"Location: {location}", status=302)

    async def _serve_chain_to_file(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/chain-to-file/N/NAME redirects N times, relatively, and then serves a file."""
        left, name = int(request.parts[1]), request.parts[2]
        location = f"/chain-to-file/{left - 1}/{name}" if left > 1 else f"/file/{name}"
        self._answer(writer, b"elsewhere", f"Location: {location}", status=302)

    async def _serve_loop(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._answer(writer, b"", "Location: /loop", status=301)

    async def _serve_to(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/to?u=URL redirects there; without u it names no place."""
        headers = [f"Location: {url}" for url in request.query.get("u", ())]
        self._answer(writer, b"elsewhere", *headers, status=307)

    async def _serve_place(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/place/NAME redirects to one of `places`."""
        self._answer(writer, b"elsewhere", f"Location: {self.places[request.parts[1]]}", status=302)

    async def _serve_gate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """/gate/N answers nobody until N of these requests are under way."""
        needed, host = int(request.parts[1]), request.headers["host"].partition(":")[0]
        gate = self._gates.setdefault(needed, asyncio.Event())
        for name in (host, ""):
            self._open[name] += 1
            self.num_open_at_most[name] = max(self.num_open_at_most[name], self._open[name])
        if self._open[""] >= needed:
            gate.set()
        await gate.wait()
        for name in (host, ""):
            self._open[name] -= 1
        self._answer(writer, b"through the gate")
