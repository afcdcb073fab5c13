"""A proxy before an S3 server that misbehaves when told to."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from typing_extensions import Self

from tests.serving import LocalServer, QuietHandler


@dataclass(frozen=True)
class Answer:
    """What to answer instead of the server.

    `kind` is "status", "reset" (no answer), "stall" (no answer until the proxy is closed) or "cut" (half of a body).
    """

    kind: str = "status"
    status: int = 503
    body: bytes = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    headers: tuple[tuple[str, str], ...] = ()


class S3Proxy:
    """Hand on what is asked, but for paths with answers of their own.

    `once[path]` holds answers to its next requests, `always[path]` is the answer to every one. `requests` counts
    "METHOD path"; `seen` has the headers of every request, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.once: dict[str, list[Answer]] = {}
        self.always: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.seen: list[dict[str, str]] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = LocalServer(partial(_Handler, self))
        self.url = self._server.url

    def clients(self) -> set[str]:
        """Name the libraries that asked."""
        agents = [headers.get("user-agent", "") for headers in self.seen]
        return {"s3fs" if "botocore" in agent else "obstore" if "object_store" in agent else agent for agent in agents}

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.set()
        self._server.__exit__(*error)


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.0"  # a connection for each request, so that none is left when a test ends

    def __init__(self, proxy: S3Proxy, *arguments: Any) -> None:
        self.proxy = proxy
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.proxy.lock:
            self.proxy.requests[f"{self.command} {path}"] += 1
            self.proxy.seen.append({name.lower(): value for name, value in self.headers.items()})
            waiting = self.proxy.once.get(path)
            answer = waiting.pop(0) if waiting else self.proxy.always.get(path)
        if answer is None:
            self.hand_on(len_sent=1.0)
        elif answer.kind == "cut":
            self.hand_on(len_sent=0.5)
        elif answer.kind == "stall":
            self.proxy.closing.wait(60)
        elif answer.kind == "status":
            self.answer(answer.status, answer.headers, answer.body, len(answer.body))

    do_HEAD = do_GET

    def hand_on(self, len_sent: float) -> None:
        upstream = http.client.HTTPConnection(self.proxy.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        upstream.request(self.command, self.path, headers=headers)
        answer = upstream.getresponse()
        body = answer.read()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "content-length")]
        length = int(answer.getheader("Content-Length") or len(body))
        self.answer(answer.status, kept, body[: int(len(body) * len_sent)], length)
        upstream.close()

    def answer(self, status: int, headers: Any, body: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
