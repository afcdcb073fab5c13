"""All that a server can do wrong, at once, through the public classes: over TCP and over TLS.

One table says what each row is and how it must end. One process loads them all, so that what one server does is seen
to do nothing to the rows beside it, and so that what is left afterwards can be measured.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.certificates import Authority, self_signed
from tests.web.hostile_files import jpeg, make_files
from tests.web.hostile_server import HostileServer

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# One more than any row here needs: where the machine is busy, a good attempt may run out of time.
RETRIES = 3
MAX_BYTES = 4 * 2**20
OPTIONS = {"allow_private_addresses": True, "timeout": 4.0, "retries": RETRIES, "max_bytes": MAX_BYTES}
SECRET = "geheim"
SECRETS = (SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode())
HOSTS = ("127.0.0.1", "localhost", "slow.test", "flaky.test", "*.good.test")
# What may pass is tried again. (Names have pauses of their own.)
TRANSIENT = {"refused", "reset", "timeout", "truncated", "http_429"}


@dataclass
class Servers:
    """The server that is looked at, and those of which it has to be known where they are."""

    main: HostileServer
    trusted: HostileServer
    expired: HostileServer
    self_signed: HostileServer
    wrong_host: HostileServer
    closed_port: int


Place = Callable[[Servers], str]


def at(path: str, host: str = "127.0.0.1") -> Place:
    return lambda servers: servers.main.url(path, host=host)


def to(target: Place | str) -> Place:
    """Redirect there."""
    return lambda servers: servers.main.url(f"/to?u={quote(target if isinstance(target, str) else target(servers))}")


def header(text: str) -> Place:
    return at(f"/header?h={quote(text)}")


def now() -> str:
    return formatdate(time.time() + 1, usegmt=True)


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# What a row is, and the reason it must fail for: "" for the picture itself, "other" for another one.
Case = tuple[Place | str, str]

IMAGES: dict[str, Case] = {
    "a good picture": (at("/file/jpeg"), ""),
    "a good picture as HTML": (at("/file/jpeg-as-html"), ""),
    "a good picture without a type": (at("/file/jpeg-as-nothing"), ""),
    "a good picture with a coding that is none": (at("/file/jpeg-with-a-nonsense-coding"), ""),
    "a good picture in gzip": (at("/file/jpeg-in-gzip"), ""),
    "a good picture in deflate": (at("/file/jpeg-in-deflate"), ""),
    # Stalls.
    "silence": (at("/silence"), "timeout"),
    "headers that stop": (at("/slow-headers"), "timeout"),
    "headers and no body": (at("/no-body"), "timeout"),
    "half a body": (at("/slow-body"), "timeout"),
    "a byte of the headers a second": (at("/trickle/headers"), "timeout"),
    "a byte of the body a second": (at("/trickle/body"), "timeout"),
    "one 100 after the other": (at("/endless-continue"), "timeout"),
    # Sizes that are not what they should be.
    "an endless body": (at("/endless"), "too_large"),
    "endless headers": (at("/endless-headers"), "bad_response"),
    "a body larger than allowed": (at(f"/ok/{MAX_BYTES + 1}"), "too_large"),
    "an empty body": (at("/empty"), "empty"),
    "a body shorter than it says": (at("/file-of-length/100000/jpeg"), "truncated"),
    "a body longer than it says": (at("/file-of-length/500/jpeg"), "cut"),
    "a body cut off": (at("/file/jpeg-cut"), "cut"),
    # Connections that break.
    "a reset before the headers": (at("/reset/headers"), "reset"),
    "a reset in the body": (at("/reset/body"), "reset"),
    "no answer": (at("/garbage?b="), "reset"),
    "an answer that is not HTTP": (at(f"/garbage?b={quote(quote('hello'))}"), "bad_response"),
    "a connection that is refused": (lambda servers: f"http://127.0.0.1:{servers.closed_port}/a.jpg", "refused"),
    # Redirects.
    "ten redirects": (at("/chain-to-file/10/jpeg"), ""),
    "eleven redirects": (at("/chain-to-file/11/jpeg"), "redirect"),
    "a redirect in a circle": (at("/loop"), "redirect"),
    "a redirect to nowhere": (at("/to"), "redirect"),
    "a redirect to another host": (to(at("/file/jpeg", host="localhost")), ""),
    "a redirect without a scheme": (lambda s: s.main.url(f"/to?u={quote(f'//localhost:{s.main.port}/file/jpeg')}"), ""),
    "a redirect to TLS": (to(lambda servers: servers.trusted.url("/file/jpeg")), ""),
    "a redirect to what is not there": (to(at("/status/404")), "http_404"),
    "a redirect to a dead name": (to("http://nowhere.test/a.jpg"), "dns"),
    "a redirect to a bad certificate": (to(lambda servers: servers.expired.url("/file/jpeg")), "tls"),
    "a redirect to a file": (to("file:///etc/hostname"), "redirect"),
    "a redirect to FTP": (to("ftp://127.0.0.1/a.jpg"), "redirect"),
    "a redirect to data": (to(data_url("image/jpeg", b"\xff\xd8")), "redirect"),
    "a redirect to JavaScript": (to("javascript:alert(1)"), "redirect"),
    "a redirect with a password": (at("/place/refused"), "refused"),
    "a redirect with a password, to FTP": (at("/place/ftp"), "redirect"),
    "a redirect with a password, to no port": (at("/place/no-port"), "redirect"),
    # Statuses.
    "400": (at("/status/400"), "http_status"),
    "401": (at("/status/401"), "http_401"),
    "403": (at("/status/403"), "http_403"),
    "404": (at("/status/404"), "http_404"),
    "410": (at("/status/410"), "http_410"),
    "414": (at("/status/414"), "http_status"),
    "451": (at("/status/451"), "http_451"),
    "204": (at("/status/204"), "empty"),
    "206": (at("/status/206"), "http_status"),
    "304": (at("/status/304"), "http_status"),
    "999": (at("/status/999"), "http_status"),
    "408 for ever": (at("/status/408"), "http_status"),
    "429 for ever": (at("/status/429"), "http_429"),
    "500 for ever": (at("/status/500"), "http_status"),
    "503 for ever": (at("/status/503"), "http_status"),
    "500 once": (at("/file-once-allowed/500/1/jpeg"), ""),
    "502 twice": (at("/file-once-allowed/502/2/jpeg"), ""),
    "429 once": (at("/file-once-allowed/429/1/jpeg"), ""),
    "429 once, with seconds": (at("/file-once-allowed/429/1/jpeg?h=Retry-After:%201"), ""),
    "503 once, with seconds": (at("/file-once-allowed/503/1/jpeg?h=Retry-After:%201"), ""),
    "503 once, with a date": (
        lambda servers: at(f"/file-once-allowed/503/1/jpeg?h={quote(f'Retry-After: {now()}')}")(servers),
        "",
    ),
    "503 once, with nonsense": (at("/file-once-allowed/503/1/jpeg?h=Retry-After:%20later"), ""),
    # Bodies that are something else.
    "a page": (at("/file/html"), "not_media"),
    "JSON": (at("/file/json"), "not_media"),
    # Bodies that become something else.
    "a gzip bomb": (at("/file/gzip-bomb"), "too_large"),
    "a deflate bomb": (at("/file/deflate-bomb"), "too_large"),
    "a thousand gzips of nothing": (at("/file/gzip-of-nothing"), "content_coding"),
    "brotli": (at("/file/brotli"), "content_coding"),
    "zstd": (at("/file/zstd"), "content_coding"),
    "gzip in gzip": (at("/file/gzip-in-gzip"), "content_coding"),
    "gzip that breaks off": (at("/file/gzip-cut"), "content_coding"),
    "gzip that is none": (at("/file/no-gzip"), "content_coding"),
    "a PNG bomb": (at("/file/png-bomb"), "too_many_pixels"),
    "a GIF with a huge screen": (at("/file/gif-with-a-huge-screen"), "too_many_pixels"),
    "a GIF with a huge second frame": (at("/file/gif-with-a-huge-second-frame"), "other"),
    "a TIFF bomb": (at("/file/tiff-bomb"), "too_many_pixels"),
    # Certificates.
    "a certificate that has expired": (lambda servers: servers.expired.url("/file/jpeg"), "tls"),
    "a certificate signed by itself": (lambda servers: servers.self_signed.url("/file/jpeg"), "tls"),
    "a certificate of another host": (lambda servers: servers.wrong_host.url("/file/jpeg"), "tls"),
    "a certificate that is trusted": (lambda servers: servers.trusted.url("/file/jpeg"), ""),
    # Names.
    "a name that is none": (at("/file/jpeg", host="nowhere.test"), "dns"),
    "another of its pictures": (at("/file/jpeg?b", host="nowhere.test"), "dns"),
    "a name that nobody answers for": (at("/file/jpeg", host="broken.test"), "dns"),
    "a name that is never answered": (at("/file/jpeg", host="hanging.test"), "dns"),
    "a name that is answered slowly": (at("/file/jpeg", host="slow.test"), ""),
    "a name that is answered the third time": (at("/file/jpeg", host="flaky.test"), ""),
    "a name that could be none": (f"http://{'a' * 70}.test/a.jpg", "dns"),
    **{f"picture {i} of one host": (at(f"/file/jpeg?{i}", host="one.good.test"), "") for i in range(10)},
    # Addresses.
    "a very long URL": (at(f"/file/jpeg?{'a' * 60_000}"), ""),
    "a URL with a password": (at(f"/file/jpeg?token={SECRET}", host=f"me:{SECRET}@127.0.0.1"), ""),
    "a URL with a password, of nothing": (at(f"/status/404?token={SECRET}", host=f"me:{SECRET}@127.0.0.1"), "http_404"),
    "a URL with a password, of no name": (at(f"/?sig={SECRET}", host=f"me:{SECRET}@nowhere.test"), "dns"),
    "a URL with a password, and no port": (f"http://me:{SECRET}@127.0.0.1:99999/?token={SECRET}", "bad_url"),
    "a URL with a password, of what hangs": (at(f"/silence?token={SECRET}", host=f"me:{SECRET}@127.0.0.1"), "timeout"),
    "a URL with blanks and umlauts": (at("/file/jpeg/Grüße aus Zürich (1).jpg?größe=ä ö"), ""),
    "a URL that is encoded": (at("/file/jpeg/Gr%C3%BC%C3%9Fe%2F1.jpg?sig=%2F%3D"), ""),
    "a URL in capitals": (lambda servers: servers.main.url("/file/jpeg", host="LOCALHOST").replace("http", "HTTP"), ""),
    "a URL with a fragment": (at("/file/jpeg#top"), ""),
    "a URL without a scheme": (lambda servers: f"//127.0.0.1:{servers.trusted.port}/file/jpeg", ""),
    "a URL without a host": ("http:///a.jpg", "bad_url"),
    "a URL of nothing": ("https://", "bad_url"),
    "a URL that is no URL": ("http://[::1/a.jpg", "bad_url"),
    "a URL of an IPv6 address that is none": ("http://[127.0.0.1:80]/a.jpg", "bad_url"),
    "a URL with data": (data_url("image/jpeg", jpeg()), ""),
    "a URL with damaged data": ("data:image/jpeg;base64,/9j", "bad_url"),
    "a URL with a page in it": ("data:text/html,<html></html>", "not_media"),
    "JavaScript": ("javascript:alert(1)", "bad_url"),
    "a URL of a file": ("file:///etc/hostname", "local_file"),
    "a URL of a file, in short": ("file:/etc/hostname", "local_file"),
    "a URL of a file, in capitals": ("FILE:///etc/hostname", "local_file"),
    "a URL of memory": ("memory://a.jpg", "local_file"),
    "a URL of an archive here": ("zip://a.jpg::/data/x.zip", "local_file"),
    "a path among URLs": ("/etc/hostname", "not_media"),
    "a link without its front": ("images/cat.jpg", "not_found"),
    "nothing": ("", "empty"),
    # Those who would rather not.
    "noai": (header("X-Robots-Tag: noai"), "opt_out"),
    "noimageindex, for us": (header("X-Robots-Tag: in-memory-datasets: noimageindex"), "opt_out"),
    "noai, for somebody else": (header("X-Robots-Tag: googlebot: noai"), "not_media"),
}  # fmt: skip

CLIPS: dict[str, Case] = {
    "a good clip": (at("/file/wav"), ""),
    "a good clip as a picture": (at("/file/wav-as-jpeg"), ""),
    "a clip that says it has 4 GB": (at("/file/wav-of-4-gb"), ""),
    "a page": (at("/file/html"), "not_media"),
    "an empty body": (at("/empty"), "empty"),
    "an endless body": (at("/endless"), "too_large"),
    "404": (at("/status/404"), "http_404"),
    "a path among URLs": ("/etc/hostname", "not_media"),
    "a URL of a file": ("file:///etc/hostname", "local_file"),
}
# As far as it was told to be one, it is half a picture; what follows may reach the client with it, or not yet.
REASONS_OF_CUT = {"truncated", "corrupt", "bad_response"}


@pytest.fixture(scope="module", params=["TCP", "TLS"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Serve everything, load it in a process of its own, and give what that process told."""
    directory = tmp_path_factory.mktemp(request.param)
    authority = Authority(directory)
    open_server = partial(authority.issue, *HOSTS)
    files = make_files()
    with ExitStack() as stack:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            closed_port = taken.getsockname()[1]

        def serve(tls: Any) -> HostileServer:
            server = stack.enter_context(HostileServer(tls=tls))
            server.files = files
            server.places = {
                "refused": f"http://me:{SECRET}@127.0.0.1:{closed_port}/?token={SECRET}",
                "ftp": f"ftp://me:{SECRET}@127.0.0.1/?token={SECRET}",
                "no-port": f"http://me:{SECRET}@127.0.0.1:99999/?token={SECRET}",
            }
            return server

        servers = Servers(
            main=serve(open_server() if request.param == "TLS" else None),
            trusted=serve(open_server()),
            expired=serve(open_server(days=(-3, -1))),
            self_signed=serve(self_signed(directory, *HOSTS)),
            wrong_host=serve(authority.issue("elsewhere.test")),
            closed_port=closed_port,
        )

        def urls(cases: dict[str, Case]) -> list[str]:
            return [place if isinstance(place, str) else place(servers) for place, _ in cases.values()]

        plan = {
            "urls": {"image": urls(IMAGES), "audio": urls(CLIPS)},
            "secret_urls": [servers.main.url(f"/status/404?token={SECRET}", host=f"me:{SECRET}@127.0.0.1")],
            "options": OPTIONS,
            "directory": str(directory / "saved"),
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.web.hostile_load"],
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(authority.path)},
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield {**json.loads(done.stdout), "stderr": done.stderr, "saved": directory / "saved"}


def check_end(told: dict[str, Any], index: int, expected: str) -> None:
    failure = told["failures"].get(str(index))
    if failure is None:
        assert expected in ("", "other"), f"it loaded, and should have failed for {expected}"
        assert told["same_as_first"][index] == (expected == "")
        return
    stage, reason, attempts, shown, _ = failure
    assert reason in REASONS_OF_CUT if expected == "cut" else reason == expected, shown[:500]
    if stage == "fetch" and reason in TRANSIENT:
        assert attempts == 1 + RETRIES, shown[:500]


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_ends_as_it_should(told: dict[str, Any], name: str) -> None:
    check_end(told["image"], list(IMAGES).index(name), IMAGES[name][1])


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_ends_as_it_should(told: dict[str, Any], name: str) -> None:
    check_end(told["audio"], list(CLIPS).index(name), CLIPS[name][1])


def test_the_load_ends_in_bounded_time(told: dict[str, Any]) -> None:
    """Every attempt is bounded by its time-out, and every pause; two minutes for all of them catch what hangs."""
    assert told["seconds"] < 120


def test_memory_stays_bounded(told: dict[str, Any]) -> None:
    """The bombs would be a gigabyte; two endless bodies would be no end of them."""
    assert told["after"]["peak_bytes"] - told["before"]["peak_bytes"] < 300 * 2**20


def test_nothing_is_left(told: dict[str, Any]) -> None:
    before, after = told["before"], told["after"]
    assert after["descriptors"] <= before["descriptors"]
    assert after["threads"] == before["threads"]
    assert after["tasks"] == []


def test_credentials_are_shown_nowhere(told: dict[str, Any]) -> None:
    """Not in the report, in log records, in what was raised, on the terminal, or in what was saved."""
    shown = json.dumps({name: value for name, value in told.items() if name != "saved"})
    assert "/status/404?token=***" in shown
    files = [path for path in told["saved"].rglob("*") if path.is_file()]
    assert len(files) >= 4
    for secret in SECRETS:
        at_fault = shown.find(secret)
        assert at_fault < 0, shown[max(0, at_fault - 300) : at_fault + 100]
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_name_is_looked_up_once_however_many_pictures_it_has(told: dict[str, Any]) -> None:
    asked = told["asked"]
    # Each load looks for itself, and all pictures of a load share what was found, or not found.
    assert asked["one.good.test"] == 1
    assert asked["slow.test"] == 1
    assert asked["flaky.test"] == 3
    assert asked["broken.test"] == 1 + RETRIES
    assert asked["nowhere.test"] == 2
    assert asked["hanging.test"] == 1


def test_the_summary_names_the_option_that_reads_local_files(told: dict[str, Any]) -> None:
    assert "fetch=FetchOptions(allow_local_files=True)" in told["image"]["report"]
