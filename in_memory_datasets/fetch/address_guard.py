"""Which network addresses a dataset's URLs may lead to.

A URL in a dataset is chosen by a stranger. Without a guard it can reach what only this machine can reach: services
on loopback, the private network, the cloud's metadata service with its credentials. The address is checked when the
socket is made, after names are looked up and redirects followed, so neither can lead past it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]

_NETWORKS: tuple[tuple[str, str], ...] = (
    ("metadata", "169.254.169.254/32"),
    ("metadata", "fd00:ec2::254/128"),
    ("shared (CGNAT)", "100.64.0.0/10"),
    ("link-local", "169.254.0.0/16"),
    ("link-local", "fe80::/10"),
    ("site-local", "fec0::/10"),
    ("protocol-assignment", "192.0.0.0/24"),
    ("local-use NAT64", "64:ff9b:1::/48"),
)
_BLOCKED = tuple((kind, ipaddress.ip_network(network)) for kind, network in _NETWORKS)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")

# The same words for every address: aiohappyeyeballs joins differing messages into a bare OSError.
BLOCKED_MESSAGE = "blocked by the address guard"


class BlockedAddressError(OSError):
    """Report a connection that the address guard refused."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, BLOCKED_MESSAGE)


def find_block(address: str) -> str | None:
    """Say why a numeric address may not be connected to ("loopback", "private", ...); None where it may.

    IPv4 addresses inside IPv6 ones (mapped, compatible, 6to4, Teredo, NAT64) count as the address they lead to.

    Source: the IANA special-purpose address registries, through `ipaddress`.

    Example:
        >>> find_block("127.0.0.1"), find_block("::ffff:10.0.0.8"), find_block("93.184.216.34")
        ('loopback', 'private', None)
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unreadable"
    return _find_block(ip)


def _find_block(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            ip = ipaddress.IPv6Address(int(ip))
        for embedded in _find_embedded(ip):
            if (kind := _find_block(embedded)) is not None:
                return kind
    for kind, network in _BLOCKED:
        if ip.version == network.version and ip in network:
            return kind
    for kind, applies in (
        ("loopback", ip.is_loopback),
        ("unspecified", ip.is_unspecified),
        ("multicast", ip.is_multicast),
        ("link-local", ip.is_link_local),
        ("private", ip.is_private and not _leads_elsewhere(ip)),
        ("reserved", ip.is_reserved and not _leads_elsewhere(ip)),
    ):
        if applies:
            return kind
    return None


def _find_embedded(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    found = [address for address in (ip.ipv4_mapped, ip.sixtofour) if address is not None]
    if ip.teredo is not None:
        found.extend(ip.teredo)
    if ip in _NAT64 or (ip in _IPV4_COMPATIBLE and int(ip) > 1):
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return found


def _leads_elsewhere(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Python versions disagree on whether these IPv6 forms are private or reserved; the IPv4 address inside decides.
    return isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped is not None or ip in _NAT64)


def open_guarded_socket(info: AddrInfo) -> socket.socket:
    """Make the socket for one connection, unless its address is blocked.

    Given to aiohttp, which calls it with the very address that it connects the socket to.

    Raises:
        BlockedAddressError: The address is blocked.
    """
    family, kind, protocol, _, address = info
    if find_block(str(address[0])) is not None:
        raise BlockedAddressError
    return socket.socket(family, kind, protocol)
