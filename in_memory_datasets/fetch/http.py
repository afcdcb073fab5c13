"""One attempt at an http(s) source."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from importlib import metadata

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from in_memory_datasets.fetch.address_guard import open_guarded_socket
from in_memory_datasets.fetch.attempt import AttemptFailed, TimeLimit, too_large
from in_memory_datasets.fetch.byte_budget import ByteBudget, Grant
from in_memory_datasets.fetch.content_coding import PIECE_BYTES, Inflater, find_coding
from in_memory_datasets.fetch.daemon_threads import DaemonThreads
from in_memory_datasets.fetch.http_failures import HTTP_ERRORS, judge_error, judge_status
from in_memory_datasets.fetch.names import Names
from in_memory_datasets.fetch.opt_out import find_opt_out, find_product
from in_memory_datasets.schema import FetchOptions, strip_credentials

MAX_REDIRECTS = 10
# Held for a body whose length is not known beforehand; more than most pictures need, little enough for hundreds.
FIRST_GUESS_BYTES = 2**20
# What a connection may take in before its body is admitted. aiohttp's default of 256 KiB would be 64 MiB for 128.
READ_BUFFER_BYTES = 2**16
# Every host seen keeps its idle connections this long, and a dataset may name thousands of hosts.
KEEPALIVE_SECONDS = 5.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PRINTABLE_ASCII = re.compile(r"[!-~]+")
_NO_URL = (ValueError, IndexError)  # the second is what yarl says of a user who is "[::1]"


class HttpClient:
    """Fetch bodies over http(s) on one event loop, keeping connections alive; made and closed on that loop."""

    def __init__(self, options: FetchOptions, budget: ByteBudget, threads: DaemonThreads) -> None:
        self._options = options
        self._budget = budget
        user_agent = options.user_agent or default_user_agent()
        self._product = find_product(user_agent)
        self._names = Names(threads)
        connector = aiohttp.TCPConnector(
            limit=0,  # the schedule bounds the requests
            resolver=_Resolver(self._names),
            use_dns_cache=False,  # the names are kept by us
            keepalive_timeout=KEEPALIVE_SECONDS,
            socket_factory=None if options.allow_private_addresses else open_guarded_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,  # a bomb would be taken apart before its limit is looked at
            # Media is compressed as it is. Without a coding its length is known before its first byte is read.
            headers={"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()
        await self._names.close()

    def attempt(self, address: str) -> HttpAttempt:
        """Begin one attempt; nothing is asked for before its first step.

        Raises:
            AttemptFailed: It is not a usable http(s) URL.
        """
        return HttpAttempt(self, parse_url(address), TimeLimit(self._options.timeout))

    def knows(self, host: str) -> bool:
        """Tell whether it is known where a host is, or that it is nowhere."""
        return self._names.is_known(host)

    async def find(self, host: str, limit: TimeLimit) -> None:
        """Find out where a host is.

        Raises:
            AttemptFailed: It is nowhere, or nobody says where.
        """
        try:
            with limit:
                await self._names.find(host)
        except asyncio.TimeoutError as error:
            seconds = self._options.timeout
            detail = f"no name server answered for {host:.100} within {seconds:g} s"
            raise AttemptFailed("dns", detail, transient=True) from error

    async def request(self, url: URL, host: str, limit: TimeLimit) -> tuple[bytes, Grant] | URL:
        """Make one request; give the body, or where to it was redirected.

        Raises:
            AttemptFailed: The body could not be had.
        """
        try:
            with limit:
                response = await self._session.get(url, allow_redirects=False)
                try:
                    if response.status in _REDIRECTS:
                        return _find_target(url, response.headers.get("Location"))
                    return await self._read(response, limit)
                finally:
                    response.release()  # closes the connection where the body was not read to its end
        except HTTP_ERRORS as error:
            if isinstance(error, (aiohttp.ClientConnectorError, asyncio.TimeoutError)):
                self._names.doubt(host)
            raise judge_error(error, timeout_seconds=self._options.timeout) from error

    async def _read(self, response: aiohttp.ClientResponse, limit: TimeLimit) -> tuple[bytes, Grant]:
        max_bytes = self._options.max_bytes
        failure = judge_status(response.status, response.headers)
        if failure is not None:
            raise failure
        if self._options.respect_opt_out:
            directive = find_opt_out(response.headers.getall("X-Robots-Tag", ()), self._product)
            if directive is not None:
                raise AttemptFailed(
                    "opt_out",
                    f"its server asks that it be left out (X-Robots-Tag: {directive}); "
                    "FetchOptions(respect_opt_out=False) takes it all the same",
                )
        length = response.content_length
        if length is not None and length > max_bytes:
            raise too_large(f"{length:,}", max_bytes)
        coding = find_coding(response.headers.get("Content-Encoding"))
        # A length is a promise only where the body comes as it is; otherwise it grows while it is read.
        is_exact = length is not None and not coding and "Transfer-Encoding" not in response.headers
        wanted = length if is_exact and length else min(FIRST_GUESS_BYTES, max_bytes)
        grant = self._budget.try_acquire(wanted)
        if grant is None:
            with limit.stopped():
                grant = await self._budget.acquire(wanted)
        try:
            if is_exact:
                data = await response.content.read()
            else:
                data = await self._read_unknown(response.content, coding, grant, limit)
            if not data:
                raise AttemptFailed("empty", "the body is empty, expected an encoded file")
        except BaseException:
            grant.release()
            raise
        grant.shrink(len(data))
        return data, grant

    async def _read_unknown(self, content: aiohttp.StreamReader, coding: str, grant: Grant, limit: TimeLimit) -> bytes:
        """Read a body whose length is not known; both as it comes and as it is, it has no more than `max_bytes`."""
        max_bytes = self._options.max_bytes
        pieces: list[bytes] = []
        inflater = Inflater(coding) if coding else None
        num_received = num_bytes = 0
        while True:
            piece = await content.readany()
            if not piece:
                break
            num_received += len(piece)
            if inflater is not None:
                inflater.feed(piece)
                piece = inflater.inflate(PIECE_BYTES)
            while piece:
                pieces.append(piece)
                num_bytes += len(piece)
                if num_bytes > max_bytes:
                    raise too_large(f"more than {max_bytes:,}", max_bytes)
                if num_bytes > grant.num_bytes:
                    wanted = min(max(num_bytes, 2 * grant.num_bytes), max_bytes)
                    with limit.stopped():
                        await self._budget.grow(grant, wanted - grant.num_bytes)
                if inflater is None:
                    break
                await asyncio.sleep(0)  # others have their turn
                piece = inflater.inflate(PIECE_BYTES)
            if num_received > max_bytes:
                raise too_large(f"more than {max_bytes:,}", max_bytes)
        if inflater is not None and not inflater.is_whole:
            raise AttemptFailed("content_coding", "its body cannot be decompressed (it ends too early)")
        return b"".join(pieces)


class HttpAttempt:
    """One attempt at an http(s) source, a step for each request: the first, and one for every redirect.

    Attributes:
        place: The host that the next step goes to.
    """

    __slots__ = ("_client", "_limit", "_seen", "_url", "place")

    def __init__(self, client: HttpClient, url: URL, limit: TimeLimit) -> None:
        self._client, self._url, self._limit = client, url, limit
        self._seen = [url]
        self.place = (url.raw_host or "").lower()

    @property
    def is_ready(self) -> bool:
        """Whether it is known where the host is."""
        return self._client.knows(self.place)

    async def prepare(self) -> None:
        """Find out where the host is.

        Raises:
            AttemptFailed: It is nowhere, or nobody says where.
        """
        await self._client.find(self.place, self._limit)

    async def step(self) -> tuple[bytes, Grant] | None:
        """Make one request; None where it was redirected.

        Raises:
            AttemptFailed: The body could not be had.
        """
        result = await self._client.request(self._url, self.place, self._limit)
        if not isinstance(result, URL):
            return result
        if result in self._seen:
            raise AttemptFailed("redirect", f"redirected in a circle, by {strip_credentials(str(result))}")
        if len(self._seen) > MAX_REDIRECTS:
            raise AttemptFailed("redirect", f"redirected more than {MAX_REDIRECTS} times")
        self._seen.append(result)
        self._url = result
        self.place = (result.raw_host or "").lower()
        return None


def parse_url(address: str) -> URL:
    """Read an http(s) URL; what is already encoded is sent as it is, since quoting it anew breaks signatures.

    Raises:
        AttemptFailed: It is not a usable http(s) URL.

    Example:
        >>> parse_url("https://a.example/x%2Fy z.jpg?sig=%2F").raw_path_qs
        '/x%2Fy%20z.jpg?sig=/'
        >>> parse_url("https://a.example/x%2Fy.jpg?sig=%2F").raw_path_qs
        '/x%2Fy.jpg?sig=%2F'
    """
    address = address.strip()
    try:
        is_encoded = _PRINTABLE_ASCII.fullmatch(address) is not None
        scheme, colon, rest = address.partition(":")
        url = URL(f"{scheme.lower()}{colon}{rest}", encoded=is_encoded)
        usable = _is_usable(url) and url.port is not None
    except _NO_URL as error:
        raise AttemptFailed("bad_url", f"not a usable URL ({error})") from error
    if not usable:
        raise AttemptFailed("bad_url", "not a usable URL, expected http://host/path or https://host/path")
    return url


def _is_usable(url: URL) -> bool:
    host = url.raw_host or ""
    if ":" in host:
        ipaddress.ip_address(host)  # yarl takes "[:]" and "[1:2]", and would write them without their brackets
    return url.scheme in ("http", "https") and bool(host)


def _find_target(url: URL, location: str | None) -> URL:
    if not location:
        raise AttemptFailed("redirect", "redirected without saying where to (no Location header)")
    try:
        is_encoded = _PRINTABLE_ASCII.fullmatch(location) is not None
        target = url.join(URL(location, encoded=is_encoded))
        if _is_usable(target):
            if target.origin() == url.origin() and target.user is None and url.user is not None:
                target = target.with_user(url.user).with_password(url.password)
            return target.with_fragment(None)
    except _NO_URL as error:
        raise AttemptFailed("redirect", f"redirected to something that is no URL ({error})") from error
    raise AttemptFailed("redirect", f"redirected to {strip_credentials(location)[:200]}, which is not http or https")


def default_user_agent() -> str:
    """Name this library, its version and where to read about it."""
    try:
        version = metadata.version("in-memory-datasets")
    except metadata.PackageNotFoundError:  # run from a checkout
        version = "0"
    return f"in-memory-datasets/{version} (+https://pypi.org/project/in-memory-datasets/)"


class _Resolver(AbstractResolver):
    """Give aiohttp the addresses that are known."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            addresses = await self._names.find(host)
        except AttemptFailed as failure:  # it was known a moment ago
            raise OSError(None, failure.detail) from failure
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=found_family, proto=socket.IPPROTO_TCP, flags=numeric
            )
            for found_family, address in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the names are closed by whoever made them."""
