"""Fetching over TLS."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from in_memory_datasets.errors import FetchError
from tests.web.hostile_server import HostileServer


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """Make a server context whose certificate nobody signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_a_certificate_that_is_not_trusted_is_final(
    self_signed: ssl.SSLContext, fail: Callable[..., FetchError]
) -> None:
    with HostileServer(tls=self_signed) as server:
        error = fail(server.url("/ok/1"), retries=3)
    assert (error.reason, error.attempts, server.requests) == ("tls", 1, [])


def test_https_to_a_server_without_tls_has_a_reason(server: HostileServer, fail: Callable[..., FetchError]) -> None:
    assert fail(server.url("/ok/1").replace("http:", "https:")).reason in ("tls", "reset")
