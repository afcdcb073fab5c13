"""No exception of aiohttp, ssl or the system escapes without a reason."""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import ssl

import aiohttp
import aiohttp.client_exceptions
import aiohttp.http_exceptions
import pytest
from yarl import URL

from in_memory_datasets.fetch.http_failures import HTTP_ERRORS, judge_error, judge_status
from in_memory_datasets.schema import REASONS

REQUEST = aiohttp.RequestInfo(URL("http://me:geheim@a.example/?token=abc"), "GET", {}, URL("http://a.example/"))  # type: ignore[arg-type]
KEY = aiohttp.client_reqrep.ConnectionKey("a.example", 443, True, True, None, None, None)
CERTIFICATE = ssl.SSLCertVerificationError(1, "self-signed certificate")
ARGUMENTS: dict[type[BaseException], tuple[object, ...]] = {
    aiohttp.ClientResponseError: (REQUEST, ()),
    aiohttp.ServerFingerprintMismatch: (b"a", b"b", "a.example", 443),
    aiohttp.ClientConnectorCertificateError: (KEY, CERTIFICATE),
    aiohttp.client_exceptions.UnixClientConnectorError: ("/socket", KEY, OSError(errno.ENOENT, "none")),
    aiohttp.ClientConnectorError: (KEY, OSError(errno.ECONNREFUSED, "refused")),
    aiohttp.InvalidURL: ("http://",),
    aiohttp.http_exceptions.HttpProcessingError: (),
    aiohttp.http_exceptions.BadHttpMessage: ("word",),
    aiohttp.http_exceptions.LineTooLong: (b"line", 10),
    aiohttp.http_exceptions.InvalidHeader: (b"header",),
}


def make(kind: type[BaseException]) -> BaseException:
    """Make an exception with the arguments of the closest class they are known of."""
    return kind(*next((ARGUMENTS[known] for known in kind.__mro__ if known in ARGUMENTS), ()))


def list_classes() -> list[type[BaseException]]:
    """List every exception class aiohttp's client defines; those of its web sockets aside, which are not used."""
    modules = (aiohttp.client_exceptions, aiohttp.http_exceptions)
    found = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__.startswith("aiohttp") and "WS" not in kind.__name__
    }
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", list_classes(), ids=lambda kind: kind.__name__)
def test_every_exception_of_aiohttp_is_caught_and_has_a_reason(kind: type[BaseException]) -> None:
    error = make(kind)
    assert isinstance(error, HTTP_ERRORS)
    failure = judge_error(error, timeout_seconds=1.0)
    assert failure.reason in REASONS
    assert failure.detail
    assert "geheim" not in failure.detail
    assert "abc" not in failure.detail


@pytest.mark.parametrize(
    ("error", "reason", "transient"),
    [
        (asyncio.TimeoutError(), "timeout", True),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "reset", True),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(socket.EAI_AGAIN, "later")), "dns", True),
        (aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE), "tls", False),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "handshake")), "tls", True),
        (CERTIFICATE, "tls", False),
        (ssl.SSLError(1, "bad record"), "tls", True),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "no route")), "unreachable", True),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EMFILE, "too many files")), "no_socket", True),
        (aiohttp.ClientConnectorError(KEY, TimeoutError(errno.ETIMEDOUT, "slow")), "timeout", True),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "reset", True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset", True),
        (BrokenPipeError(), "reset", True),
        (aiohttp.ServerDisconnectedError(), "reset", True),
        (aiohttp.ClientPayloadError("Response payload is not completed"), "truncated", True),
        (ValueError("odd"), "bad_response", False),
    ],
    ids=repr,
)
def test_errors_have_the_reason_one_expects(error: BaseException, reason: str, transient: bool) -> None:
    failure = judge_error(error, timeout_seconds=1.0)
    assert (failure.reason, failure.transient) == (reason, transient)


@pytest.mark.parametrize(
    ("status", "reason", "transient"),
    [
        (100, "http_status", False),
        (206, "http_status", False),
        (301, "http_status", False),
        (400, "http_status", False),
        (401, "http_401", False),
        (403, "http_403", False),
        (404, "http_404", False),
        (408, "http_status", True),
        (410, "http_410", False),
        (414, "http_status", False),
        (425, "http_status", True),
        (429, "http_429", True),
        (451, "http_451", False),
        (500, "http_status", True),
        (503, "http_status", True),
        (599, "http_status", True),
        (600, "http_status", False),
        (999, "http_status", False),
    ],
)
def test_a_status_says_what_it_is_and_whether_to_try_again(status: int, reason: str, transient: bool) -> None:
    failure = judge_status(status, {"Retry-After": "7"})
    assert failure is not None
    assert (failure.reason, failure.transient, failure.retry_after) == (reason, transient, 7.0)
    assert str(status) in failure.detail


def test_a_machine_without_sockets_is_told_what_to_do() -> None:
    error = aiohttp.ClientConnectorError(KEY, OSError(errno.EMFILE, "Too many open files"))
    assert "ulimit -n" in judge_error(error, timeout_seconds=1.0).detail
