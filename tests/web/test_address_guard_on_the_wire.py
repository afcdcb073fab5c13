"""The address guard against real connections."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch import Fetcher, address_guard
from in_memory_datasets.schema import Source
from tests.web.hostile_server import HostileServer, make_body

MakeFetcher = Callable[..., Fetcher]
Fail = Callable[..., FetchError]


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard take 127.0.0.1 for a public address, since no public server can be had here."""
    find_block = address_guard.find_block
    monkeypatch.setattr(address_guard, "find_block", lambda ip: None if ip == "127.0.0.1" else find_block(ip))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_loopback_is_refused_in_every_spelling(server: HostileServer, fail: Fail, host: str) -> None:
    error = fail(server.url("/ok/1", host=host), allow_private_addresses=False, retries=3)
    assert (error.reason, error.attempts) == ("blocked_address", 1)
    assert "allow_private_addresses=True" in str(error)
    assert server.num_connections == 0


@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "127.1", "0x7f000001", "017700000001", "127.0.0.1."])
def test_other_spellings_of_a_number_lead_nowhere(server: HostileServer, fail: Fail, host: str) -> None:
    """Either it is no address, or it is the one that the guard knows."""
    error = fail(server.url("/ok/1", host=host), allow_private_addresses=False, retries=0)
    assert error.reason in ("blocked_address", "bad_url", "dns")
    assert server.num_connections == 0


def resolve_as(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Answer for every name under "test" with one address after the other; give the names asked for."""
    system, asked = socket.getaddrinfo, []

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).rstrip(".").endswith(".test"):
            return system(host, port, *arguments, **options)
        asked.append(host)
        return system(answers[min(len(asked), len(answers)) - 1], port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("host", ["inside.test", "inside.test.", "INSIDE.test"])
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "::1"])
def test_a_name_does_not_lead_past_the_guard(
    server: HostileServer, fail: Fail, monkeypatch: pytest.MonkeyPatch, host: str, address: str
) -> None:
    resolve_as(monkeypatch, address)
    assert fail(server.url("/ok/1", host=host), allow_private_addresses=False).reason == "blocked_address"
    assert server.num_connections == 0


@pytest.mark.usefixtures("loopback_is_public")
def test_a_name_that_changes_its_address_does_not_lead_past_the_guard(
    server: HostileServer, make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up is what is connected to: there is no second look-up between check and use to be lied to."""
    asked = resolve_as(monkeypatch, "127.0.0.1", "127.0.0.2")
    fetcher = make_fetcher(allow_private_addresses=False)
    for _ in range(3):
        assert fetcher.fetch(Source("url", server.url("/ok/9", host="rebinding.test"))).data == make_body(9)
        server.drop_connections()
    assert asked == ["rebinding.test"]
    error = (
        make_fetcher(allow_private_addresses=False)
        .submit(Source("url", server.url("/ok/9", host="rebinding.test")))
        .exception(60)
    )
    assert isinstance(error, FetchError)
    assert error.reason == "blocked_address"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "192.168.1.1", "100.64.0.1", "[fe80::1]", "[::1]"]
)
def test_private_and_metadata_addresses_are_refused(fail: Fail, host: str) -> None:
    assert fail(f"http://{host}/latest/meta-data", allow_private_addresses=False).reason == "blocked_address"


@pytest.mark.usefixtures("loopback_is_public")
@pytest.mark.parametrize("target", ["http://127.0.0.2:1/x", "http://169.254.169.254/x", "http://[::1]:1/x"])
def test_a_redirect_does_not_lead_past_the_guard(server: HostileServer, fail: Fail, target: str) -> None:
    error = fail(server.url(f"/to?u={target}"), allow_private_addresses=False)
    assert (error.reason, len(server.requests)) == ("blocked_address", 1)


@pytest.mark.usefixtures("loopback_is_public")
def test_of_a_name_with_several_addresses_the_public_one_is_used(
    server: HostileServer, make_fetcher: MakeFetcher
) -> None:
    """localhost is ::1 and 127.0.0.1 on most machines."""
    fetched = make_fetcher(allow_private_addresses=False).fetch(Source("url", server.url("/ok/9", host="localhost")))
    assert fetched.data == make_body(9)
