"""What goes wrong with storage back ends, as reasons; no message shows a key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.files import judge_file_error
from in_memory_datasets.fetch.retry import parse_retry_after
from in_memory_datasets.schema import strip_credentials

_TRANSIENT_STATUSES = frozenset({408, 425, 429})

# Errors of botocore, aiobotocore and aiohttp, by name so that none of them need be imported: the reason, what
# happened, and whether it may pass.
_BY_NAME: dict[str, tuple[str, str, bool]] = {
    "NoCredentialsError": ("permission", "no login for this storage was found", False),
    "PartialCredentialsError": ("permission", "the login for this storage lacks a part", False),
    "CredentialRetrievalError": ("permission", "the login for this storage could not be had", False),
    "ProfileNotFound": ("permission", "the profile with the login for this storage is not there", False),
    "SSLError": ("tls", "no secure connection to the storage", True),
    "ConnectTimeoutError": ("timeout", "the storage did not answer in time", True),
    "ReadTimeoutError": ("timeout", "the storage did not answer in time", True),
    "ServerTimeoutError": ("timeout", "the storage did not answer in time", True),
    "FSTimeoutError": ("timeout", "the storage did not answer in time", True),
    "ConnectionClosedError": ("reset", "the connection to the storage broke", True),
    "ServerDisconnectedError": ("reset", "the connection to the storage broke", True),
    "ClientPayloadError": ("truncated", "what the storage sent broke off", True),
    "ResponseStreamingError": ("truncated", "what the storage sent broke off", True),
    "IncompleteReadError": ("truncated", "what the storage sent broke off", True),
    "ProxyConnectionError": ("refused", "the proxy before the storage cannot be reached", True),
    "EndpointConnectionError": ("refused", "the storage cannot be reached", True),
    "ClientConnectorError": ("refused", "the storage cannot be reached", True),
    "HTTPClientError": ("reset", "the connection to the storage broke", True),
}

_KEY_ID = re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}|\bhf_[A-Za-z0-9]{16,}")
_KEY_FIELD = re.compile(r"(?i)(<(AWSAccessKeyId|StringToSign\w*|SignatureProvided|CanonicalRequest\w*)>).*?(</\2>)")
_SECRET_NAME = re.compile(r"(?i)key|secret|token|passw|credential|account_name|connection_string")


def judge_storage_error(error: BaseException, url: str) -> AttemptFailed:
    """Turn what a storage back end raised into a failure with a reason."""
    for one in _causes(error):
        status, headers = _answer(one)
        if status is not None and (failure := judge_storage_status(status, headers)) is not None:
            return failure
        for kind in type(one).__mro__:
            if kind.__name__ in _BY_NAME and kind.__module__ != "builtins":
                reason, detail, transient = _BY_NAME[kind.__name__]
                words = words_of(one, url)
                return AttemptFailed(reason, f"{detail} ({words})" if words else detail, transient=transient)
    failure = judge_file_error(error)
    failure.detail = hide_keys(failure.detail, url)
    return failure


def judge_storage_status(status: int, headers: Mapping[str, str] = MappingProxyType({})) -> AttemptFailed | None:
    """Turn the HTTP status of a storage into a failure; None for one whose error says more."""
    if status < 300 or status in (403, 404):
        return None
    try:
        phrase = f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = str(status)
    if status < 400:
        return AttemptFailed("redirect", f"the storage answered {phrase}: it lies in another region, or elsewhere")
    reason = {401: "permission", 429: "http_429"}.get(status, "http_status")
    return AttemptFailed(
        reason,
        f"the storage answered {phrase}",
        transient=status in _TRANSIENT_STATUSES or status >= 500,
        retry_after=parse_retry_after(headers.get("retry-after")),
        overloaded=status in (429, 503),
    )


def words_of(error: BaseException, url: str) -> str:
    """Say what an error of a storage says, on one line, short, and without a key."""
    return hide_keys(" ".join(str(error).split())[:300], url)


def hide_keys(text: str, url: str) -> str:
    """Replace what may be a key in a message by "***".

    Keys are those of the URL itself, of fsspec's configuration and of the environment, and what looks like one of
    Amazon's or of the Hub's.

    Example:
        >>> hide_keys('Invalid bucket name "me:geheim@b" for AKIAIOSFODNN7EXAMPLE', "s3://me:geheim@b/x.jpg")
        'Invalid bucket name "***@b" for ***'
    """
    for secret in _secrets_of_url(url):
        text = text.replace(f"{secret}@", "***@")
    for secret in _secrets_set():
        text = text.replace(secret, "***")
    return strip_credentials(_KEY_FIELD.sub(r"\1***\3", _KEY_ID.sub("***", text)))


def _secrets_of_url(url: str) -> Iterator[str]:
    for part in url.split("::"):
        place = part.partition("://")[2].partition("/")[0]
        if "@" in place:
            yield place.rpartition("@")[0]


def _secrets_set() -> list[str]:
    import fsspec

    found = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    pending: list[Any] = list(fsspec.config.conf.values())
    while pending:
        options = pending.pop()
        if isinstance(options, Mapping):
            pending += [value for value in options.values() if isinstance(value, Mapping)]
            found += [value for name, value in options.items() if _SECRET_NAME.search(str(name))]
    # What is short is a word or a switch, and would be found inside others.
    return sorted({value for value in found if isinstance(value, str) and len(value) >= 8}, key=len, reverse=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _answer(error: BaseException) -> tuple[int | None, Mapping[str, str]]:
    """Find the HTTP status and headers in an error of botocore, aiohttp, gcsfs or the Hub."""
    answer = getattr(error, "response", None)
    if isinstance(answer, Mapping):
        told = answer.get("ResponseMetadata", {})
        return _as_status(told.get("HTTPStatusCode")), told.get("HTTPHeaders", {})
    for holder, name in ((error, "status"), (answer, "status_code"), (error, "status_code"), (error, "code")):
        status = _as_status(getattr(holder, name, None))
        if status is not None:
            headers = getattr(answer, "headers", None) or getattr(error, "headers", None)
            return status, headers if isinstance(headers, Mapping) else {}
    return None, {}


def _as_status(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 100 <= value < 600 else None
