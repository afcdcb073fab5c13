"""Which reason what a storage raises has, and what of its message is shown."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import fsspec
import pytest

from in_memory_datasets.fetch.storage_failures import hide_keys, judge_storage_error

URL = "s3://bucket/a.jpg"


def of_botocore(status: int, **headers: str) -> Exception:
    from botocore.exceptions import ClientError

    answer: Any = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    error = OSError(5, "translated")
    error.__cause__ = ClientError(answer, "GetObject")
    return error


def of_botocore_named(name: str, **words: Any) -> Exception:
    import botocore.exceptions

    return getattr(botocore.exceptions, name)(**words)  # type: ignore[no-any-return]


def with_attributes(**attributes: Any) -> Exception:
    error = RuntimeError("no")
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    ("error", "reason", "transient"),
    [
        (of_botocore(503), "http_status", True),
        (of_botocore(500), "http_status", True),
        (of_botocore(429), "http_429", True),
        (of_botocore(400), "http_status", False),
        (of_botocore(401), "permission", False),
        (of_botocore(301), "redirect", False),
        (of_botocore_named("NoCredentialsError"), "permission", False),
        (of_botocore_named("EndpointConnectionError", endpoint_url="http://a"), "refused", True),
        (of_botocore_named("ConnectTimeoutError", endpoint_url="http://a"), "timeout", True),
        (of_botocore_named("ReadTimeoutError", endpoint_url="http://a"), "timeout", True),
        (of_botocore_named("ConnectionClosedError", endpoint_url="http://a"), "reset", True),
        (of_botocore_named("HTTPClientError", error="x"), "reset", True),
        (of_botocore_named("SSLError", endpoint_url="https://a", error="x"), "tls", True),
        (with_attributes(status=503), "http_status", True),
        (with_attributes(code=429), "http_429", True),
        (with_attributes(code="NoSuchThing"), "unreadable", False),
        (PermissionError("x"), "permission", False),
        (FileNotFoundError("x"), "not_found", False),
    ],
    ids=repr,
)
def test_errors_of_storages_have_the_reason_one_expects(error: Exception, reason: str, transient: bool) -> None:
    failure = judge_storage_error(error, URL)
    assert (failure.reason, failure.transient) == (reason, transient)


def test_a_storage_that_says_when_to_come_again_is_heard() -> None:
    assert judge_storage_error(of_botocore(503, **{"retry-after": "7"}), URL).retry_after == 7.0


def test_keys_are_hidden_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the environment")
    monkeypatch.setitem(fsspec.config.conf, "abfs", {"account_key": "of the configuration", "client_kwargs": {
        "sas_token": "of a nested one"}})  # fmt: skip
    shown = hide_keys(
        "of the environment, of the configuration, of a nested one, ASIAIOSFODNN7EXAMPLE, hf_abcdefghijklmnopqrst, "
        "<AWSAccessKeyId>FOREIGN</AWSAccessKeyId>, me:geheim@bucket, https://a.example/x?X-Amz-Signature=abc",
        "zip://x::s3://me:geheim@bucket/x.zip",
    )
    assert shown == (
        "***, ***, ***, ***, ***, <AWSAccessKeyId>***</AWSAccessKeyId>, ***@bucket, "
        "https://a.example/x?X-Amz-Signature=***"
    )


def test_neither_library_is_imported_before_a_bucket_is_read() -> None:
    code = (
        "import sys, in_memory_datasets.fetch; sys.exit(any(m in sys.modules for m in ('obstore', 's3fs', 'fsspec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
