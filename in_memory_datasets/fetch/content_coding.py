"""Bodies that a server compressed though nobody asked for it.

Every request says `Accept-Encoding: identity`: media is compressed as it is. Some servers send gzip all the same, most
of them because files were put there with that header. gzip and deflate are undone here, a piece at a time, so that a
few kilobytes that stand for gigabytes never become more than a piece. Other codings are refused by name: reading them
takes libraries of their own, and older ones of these know no bound.
"""

from __future__ import annotations

import zlib

from in_memory_datasets.fetch.attempt import AttemptFailed

# Undone at once, between two looks at the limits and at other connections.
PIECE_BYTES = 2**20
# A gzip may be many, one behind the other, and each of them nothing: twenty bytes that cost time and never add up.
MAX_MEMBERS = 1000

_OURS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
# The registered ones, which change the body; whatever else stands there ("binary", "utf-8", "none") does not.
# Source: IANA, HTTP content coding registry.
_FOREIGN = frozenset({"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"})
_GZIP_MAGIC = b"\x1f\x8b"


def find_coding(header: str | None) -> str:
    """Name the coding that has to be undone: "gzip", "deflate" or "" where there is none.

    Raises:
        AttemptFailed: There is one that is not read here, or several on top of each other.

    Example:
        >>> find_coding(None), find_coding("identity"), find_coding("X-GZIP")
        ('', '', 'gzip')
    """
    if header is None:
        return ""
    found = [word for part in header.split(",") if (word := part.strip().lower()) in _OURS or word in _FOREIGN]
    if not found:
        return ""
    if len(found) > 1 or found[0] in _FOREIGN:
        raise AttemptFailed(
            "content_coding",
            f"its server sends it compressed ({', '.join(found)[:100]}), which was not asked for and is not read",
        )
    return _OURS[found[0]]


class Inflater:
    """Undo "gzip" or "deflate" in pieces of bounded size.

    Source: RFC 9110, section 8.4.1, and RFC 1952 for gzip in several members.

    Example:
        >>> inflater = Inflater("deflate")
        >>> inflater.feed(zlib.compress(b"a cat"))
        >>> inflater.inflate(3), inflater.inflate(3), inflater.inflate(3), inflater.is_whole
        (b'a c', b'at', b'', True)
    """

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding == "gzip"
        self._engine: zlib._Decompress | None = None
        self._left = b""
        self._num_members = 0

    @property
    def is_whole(self) -> bool:
        """Tell whether what was fed ends where a stream ends; with nothing fed it does too."""
        return self._engine is None and (self._num_members > 0 or not self._left)

    def feed(self, data: bytes) -> None:
        """Take more of the body."""
        self._left += data

    def inflate(self, max_bytes: int) -> bytes:
        """Give the next piece, of at most `max_bytes`; b"" once all that was fed is used up.

        Raises:
            AttemptFailed: It is not coded as it should be.
        """
        while self._engine is not None or self._begin():
            engine = self._engine
            assert engine is not None
            try:
                piece = engine.decompress(self._left, max_bytes)
            except zlib.error as error:
                raise AttemptFailed("content_coding", f"its body cannot be decompressed ({error})") from error
            if engine.eof:
                self._left, self._engine = engine.unused_data, None
                self._num_members += 1
                if self._num_members > MAX_MEMBERS:
                    raise AttemptFailed("content_coding", f"its body is more than {MAX_MEMBERS:,} gzip files in a row")
            else:
                self._left = engine.unconsumed_tail
            if piece or not self._left:
                return piece
        return b""

    def _begin(self) -> bool:
        """Begin a stream with what is left; False where that is too little or only padding."""
        if self._num_members and not (self._is_gzip and _GZIP_MAGIC.startswith(self._left[:2])):
            self._left = b""
        if len(self._left) < 2:
            return False
        if self._is_gzip:
            window_bits = 16 + zlib.MAX_WBITS
        else:
            # By the book "deflate" has a header of two bytes; some servers leave it out.
            has_header = self._left[0] & 15 == zlib.DEFLATED and int.from_bytes(self._left[:2], "big") % 31 == 0
            window_bits = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
        self._engine = zlib.decompressobj(window_bits)
        return True
