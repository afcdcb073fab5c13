"""Which addresses the guard refuses."""

from __future__ import annotations

import socket

import pytest

from in_memory_datasets.fetch.address_guard import BlockedAddressError, find_block, open_guarded_socket


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "0.1.2.3", "::"),
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1"),
        *("169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%1", "fe80::1%eth0", "fd00:ec2::254", "fec0::1"),
        *("100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.192", "198.18.0.1", "192.0.2.1", "203.0.113.5"),
        *("224.0.0.1", "239.255.255.255", "ff02::1", "240.0.0.1", "255.255.255.255", "2001:db8::1", "100::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:100.64.0.1", "::127.0.0.1", "::8.8.8.8"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:a00:1::1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::1"),
        *("no address", "", "127.0.0.1 "),
    ],
)
def test_what_is_not_public_is_blocked(address: str) -> None:
    assert find_block(address) is not None
    with pytest.raises(BlockedAddressError):
        open_guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "93.184.216.34", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
        *("169.253.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
    ],
)
def test_what_is_public_is_let_through(address: str) -> None:
    assert find_block(address) is None


def test_the_reason_names_the_kind() -> None:
    assert [find_block(ip) for ip in ("127.0.0.1", "169.254.169.254", "::ffff:10.1.2.3", "100.64.0.1")] == [
        "loopback",
        "metadata",
        "private",
        "shared (CGNAT)",
    ]


def test_the_socket_is_what_was_asked_for() -> None:
    with open_guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))) as sock:
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
