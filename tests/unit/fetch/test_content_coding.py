"""Bodies that come compressed though nobody asked for it."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.content_coding import MAX_MEMBERS, Inflater, find_coding


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, ""),
        ("", ""),
        ("identity", ""),
        ("Identity", ""),
        ("gzip", "gzip"),
        (" GZip ", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("identity, gzip", "gzip"),
        ("gzip,", "gzip"),
        ("binary", ""),
        ("utf-8", ""),
        ("none", ""),
        ("image/jpeg", ""),
    ],
)
def test_a_coding_is_what_changes_the_body(header: str | None, coding: str) -> None:
    assert find_coding(header) == coding


@pytest.mark.parametrize("header", ["br", "zstd", "compress", "BR", "gzip, br", "gzip, gzip", "deflate, gzip"])
def test_what_is_not_read_is_refused_by_name(header: str) -> None:
    with pytest.raises(AttemptFailed) as caught:
        find_coding(header)
    assert (caught.value.reason, caught.value.transient) == ("content_coding", False)
    assert header.lower() in caught.value.detail


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def undo(coding: str, body: bytes, *, chunk: int, piece: int) -> tuple[bytes, bool]:
    """Feed a body in chunks and take it in pieces."""
    inflater = Inflater(coding)
    found = []
    for start in range(0, len(body), chunk):
        inflater.feed(body[start : start + chunk])
        while data := inflater.inflate(piece):
            assert len(data) <= piece
            found.append(data)
    return b"".join(found), inflater.is_whole


DATA = random.Random(0).randbytes(3000) + bytes(9000)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 100_000])
@pytest.mark.parametrize("piece", [1, 13, 100_000])
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(DATA, mtime=0)),
        ("gzip", gzip.compress(DATA[:5000], mtime=0) + gzip.compress(DATA[5000:], mtime=0)),
        ("gzip", gzip.compress(DATA, mtime=0) + bytes(20)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", raw_deflate(DATA)),
        ("deflate", zlib.compress(DATA) + b"padding"),
    ],
    ids=["gzip", "two members", "gzip and padding", "deflate", "deflate without a header", "deflate and padding"],
)
def test_a_body_is_undone_whole_in_pieces_of_any_size(coding: str, body: bytes, chunk: int, piece: int) -> None:
    assert undo(coding, body, chunk=chunk, piece=piece) == (DATA, True)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_breaks_off_is_not_whole(coding: str) -> None:
    body = gzip.compress(DATA, mtime=0) if coding == "gzip" else zlib.compress(DATA)
    for length in (1, 2, 10, 100, len(body) - 1):
        found, is_whole = undo(coding, body[:length], chunk=50, piece=1000)
        assert DATA.startswith(found)
        assert not is_whole


def test_nothing_at_all_is_whole() -> None:
    """The length of an empty body tells that it is empty, not that it broke off."""
    assert undo("gzip", b"", chunk=1, piece=1) == (b"", True)


@pytest.mark.parametrize(("coding", "body"), [("gzip", b"\xff\xd8\xff no gzip"), ("deflate", b"\xff\xd8\xff none")])
def test_what_is_not_coded_as_it_says_has_a_reason(coding: str, body: bytes) -> None:
    with pytest.raises(AttemptFailed) as caught:
        undo(coding, body, chunk=100, piece=100)
    assert caught.value.reason == "content_coding"


def test_a_damaged_checksum_is_noticed() -> None:
    body = bytearray(gzip.compress(DATA, mtime=0))
    body[-5] ^= 1
    with pytest.raises(AttemptFailed, match="content_coding"):
        undo("gzip", bytes(body), chunk=1000, piece=1000)


def test_many_members_come_to_an_end() -> None:
    nothing = gzip.compress(b"", mtime=0)
    assert undo("gzip", nothing * MAX_MEMBERS, chunk=10_000, piece=100) == (b"", True)
    with pytest.raises(AttemptFailed, match="more than 1,000 gzip files in a row"):
        undo("gzip", nothing * (MAX_MEMBERS + 1), chunk=10_000, piece=100)
