"""What goes wrong with HTTP, as reasons."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
from collections.abc import Mapping
from http import HTTPStatus

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from in_memory_datasets.fetch.address_guard import BLOCKED_MESSAGE, BlockedAddressError
from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.retry import parse_retry_after
from in_memory_datasets.schema import strip_credentials

# All that aiohttp raises of its own, or lets through, while it fetches. ValueError and RuntimeError: a hostile answer
# can trip its parsers in ways it has no class for.
HTTP_ERRORS = (aiohttp.ClientError, HttpProcessingError, asyncio.TimeoutError, OSError, ValueError, RuntimeError)

TRANSIENT_STATUSES = frozenset({408, 425, 429})
_OWN_REASON = frozenset({401, 403, 404, 410, 429, 451})
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
# The server knows nothing of these.
_OUT_OF_SOCKETS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_BYTES = re.compile(r"[\s:]*\bb[\"']")

ALLOW_PRIVATE_HINT = "fetch it with FetchOptions(allow_private_addresses=True) if this is your own server"


def judge_status(status: int, headers: Mapping[str, str]) -> AttemptFailed | None:
    """Turn an HTTP status into a failure; None for one that comes with the whole file."""
    if 200 <= status < 300 and status != 206:
        return None
    try:
        phrase = f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = str(status)
    return AttemptFailed(
        f"http_{status}" if status in _OWN_REASON else "http_status",
        f"the server answered {phrase}, expected 200",
        transient=status in TRANSIENT_STATUSES or 500 <= status < 600,
        retry_after=parse_retry_after(headers.get("Retry-After")),
        overloaded=status in (429, 503),
    )


def judge_error(error: BaseException, *, timeout_seconds: float) -> AttemptFailed:
    """Turn whatever aiohttp, ssl or the system raised into a failure with a reason.

    Connection errors, time-outs and cut-off bodies are transient; what the address guard, certificates or the URL
    itself rule out is not.
    """
    reason, detail, transient = _judge(error, timeout_seconds)
    return AttemptFailed(reason, strip_credentials(detail), transient=transient)


def _judge(error: BaseException, timeout_seconds: float) -> tuple[str, str, bool]:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns", f"the name does not resolve ({_words(error.os_error)})", True
    if isinstance(error, (ssl.SSLCertVerificationError, aiohttp.ClientConnectorCertificateError)):
        return "tls", f"the server's certificate is not trusted ({_words(error)})", False
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "tls", "the server's certificate is another one than expected", False
    if isinstance(error, (ssl.SSLError, aiohttp.ClientSSLError)):
        return "tls", f"no secure connection ({_words(error)})", True
    if isinstance(error, asyncio.TimeoutError):
        return "timeout", f"no complete answer within {timeout_seconds:g} s", True
    if isinstance(error, aiohttp.ClientConnectorError):
        return _judge_connect(error.os_error, timeout_seconds)
    if isinstance(error, aiohttp.ClientPayloadError):
        if ConnectionResetError.__name__ in str(error):  # aiohttp keeps the system's error in its text alone
            return "reset", "the server reset the connection in the middle of the body", True
        return "truncated", f"the body broke off ({_words(error)})", True
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return "bad_url", "not a usable http or https URL", False
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        return "bad_response", f"the answer is not valid HTTP ({_words(error)})", False
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        if isinstance(error, OSError):
            return _judge_connect(error, timeout_seconds, otherwise="reset")
        return "reset", f"the server closed the connection ({_words(error)})", True
    return "bad_response", f"the answer could not be read ({type(error).__name__}: {_words(error)})", False


def _judge_connect(error: OSError, timeout_seconds: float, otherwise: str = "refused") -> tuple[str, str, bool]:
    if isinstance(error, BlockedAddressError) or BLOCKED_MESSAGE in str(error):
        return "blocked_address", f"it leads to an address that is not public; {ALLOW_PRIVATE_HINT}", False
    if isinstance(error, ConnectionRefusedError) or error.errno == errno.ECONNREFUSED:
        return "refused", "the connection was refused", True
    if error.errno == errno.ETIMEDOUT:
        return "timeout", f"no connection within {timeout_seconds:g} s", True
    if isinstance(error, ConnectionError):
        return "reset", f"the connection broke ({_words(error)})", True
    if error.errno in _UNREACHABLE:
        return "unreachable", f"the host cannot be reached ({_words(error)})", True
    if error.errno in _OUT_OF_SOCKETS:
        hint = "raise `ulimit -n` or lower FetchOptions(concurrency=...)"
        return "no_socket", f"this machine has no socket left for it ({_words(error)}); {hint}", True
    return otherwise, f"no working connection ({_words(error)})", True


def _words(error: BaseException) -> str:
    """Say what an error says.

    aiohttp's response errors show the whole URL, so only their message is taken, and of that not the bytes received.
    """
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        text = _BYTES.split(error.message)[0]
    elif isinstance(error, aiohttp.ClientConnectorError):
        text = str(error.os_error)
    else:
        text = str(error)
    return " ".join(text.split())[:200] or type(error).__name__
