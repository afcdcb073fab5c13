"""A web server on this machine that is altogether gone when it is closed."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from typing_extensions import Self


class QuietHandler(SimpleHTTPRequestHandler):
    """Keep connections alive and write no log; serves files, or what a subclass's do_GET sends."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits for the client to acknowledge its headers, 40 ms

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def send_body(self, body: bytes | None) -> None:
        """Answer with these bytes, or with 404."""
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


class LocalServer(ThreadingHTTPServer):
    """Serve from a thread for as long as the `with` block lasts.

    Clients keep connections alive and close them when they like; the threads that wait on them are ended with the
    server, so that none of their sockets is taken for a leak of what is tested.
    """

    daemon_threads = False  # joined by server_close
    request_queue_size = 512

    def __init__(self, handler: Callable[..., Any]) -> None:
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the client was first
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def settle(self) -> None:
        """Wait until all has been read that clients which have ended had sent; no other may be connected."""
        with socket.create_connection(("127.0.0.1", self.server_port)) as last:
            last.shutdown(socket.SHUT_WR)
            assert last.recv(1) == b""  # connections are taken in the order they were made
        while self._connections:
            time.sleep(0.001)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients break off on purpose
            super().handle_error(request, client_address)
