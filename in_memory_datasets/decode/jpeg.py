"""JPEG: what the header says, and the fast scaled decode of the kinds it is safe for."""

from __future__ import annotations

from dataclasses import dataclass

from in_memory_datasets.decode.orientation import exif_orientation, xmp_orientation
from in_memory_datasets.decode.resize import Pixels

_SOI, _EOI, _SOS, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # all SOFn; DHT, JPG and DAC lie among them
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}
_DROPPED_MARKERS = frozenset(range(0xE1, 0xF0)) - {_APP14} | {0xFE}
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
# Ordinary progressive files have about ten scans. Each costs a pass over the whole picture, so a small file of
# thousands of empty scans keeps a decoder busy for minutes (CVE-2018-11813 and its kin).
MAX_SCANS = 500


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the segments before the first scan say.

    Attributes:
        width: Stored width in pixels, before any orientation.
        height: Stored height in pixels.
        frame_type: The n of the SOFn marker: 0 baseline, 1 extended, 2 progressive, 3 lossless, 9 arithmetic, ...
        precision: Bits per component.
        num_components: 1 grey, 3 colour, 4 CMYK or YCCK.
        orientation: 1 to 8.
        has_scans: Whether more scans may follow the first: it is progressive, or has not all components in the first.
            Of others libjpeg refuses a second one.
        is_clean: Whether segment follows segment without stray bytes, and there is one frame.
        essential: The segments that decoding needs: no EXIF, ICC, XMP, picture lists or comments.
        scan_start: Where the first scan begins in the file.
    """

    width: int
    height: int
    frame_type: int
    precision: int
    num_components: int
    orientation: int
    has_scans: bool
    is_clean: bool
    essential: bytes
    scan_start: int

    @property
    def is_scalable(self) -> bool:
        """Tell whether a scaled decode is safe.

        simplejpeg ignores the scale for lossless files and writes the full picture into the smaller buffer, past its
        end. Arithmetic, hierarchical, 12-bit and 4-component files are rare enough to be left to Pillow with them.
        """
        return self.is_clean and self.frame_type <= 2 and self.precision == 8 and self.num_components in (1, 3)


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Walk the segments up to the first scan; None where there is no frame header before it.

    Source: ITU-T T.81, annex B.

    Cost: proportional to the length of the header.
    """
    frame: tuple[int, int, int, int, int] | None = None
    exif = xmp = b""
    is_clean = True
    kept = [b"\xff\xd8"]
    position = 2
    while True:
        start = data.find(b"\xff", position)
        if start < 0:
            return None
        is_clean = is_clean and start == position
        while start < len(data) and data[start] == 0xFF:  # any number of fill bytes may precede a marker
            start += 1
        if start >= len(data):
            return None
        marker = data[start]
        position = start + 1
        if marker == _EOI:
            return None
        if marker == 0 or marker in _WITHOUT_LENGTH:  # FF 00 is no marker
            is_clean = False
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        if marker == _SOS:
            break
        if length < 2 or len(segment) != length - 2:
            return None
        if marker in _FRAME_MARKERS and len(segment) >= 6:
            is_clean = is_clean and frame is None
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            frame = frame or (width, height, marker - 0xC0, segment[0], segment[5])
        if marker == _APP1:
            if segment.startswith(b"Exif\0\0") and not exif:
                exif = segment
            elif segment.startswith(_XMP_PREFIX) and not xmp:
                xmp = segment
        if marker not in _DROPPED_MARKERS:
            kept.append(b"\xff" + data[start : position + length])
        position += length
    if frame is None:
        return None
    orientation = exif_orientation(exif) or xmp_orientation(xmp) or 1
    has_scans = frame[2] > 1 or segment[:1] != bytes([frame[4]])
    return JpegHeader(*frame, orientation, has_scans, is_clean, b"".join(kept), start - 1)


def without_metadata(data: bytes, header: JpegHeader) -> bytes:
    """Give a file that decodes to the same pixels and leaves Pillow nothing to parse, or to warn about, but these."""
    return header.essential + data[header.scan_start :]


def count_scans(data: bytes) -> int:
    """Count scan headers; those of an embedded thumbnail count too. One pass over the bytes."""
    return data.count(b"\xff\xda")


def decode_scaled(data: bytes, *, min_size: tuple[int, int]) -> Pixels:
    """Decode at the smallest of the scales 1/8 to 4/8 that is no smaller than `min_size` (width, height), or in full.

    Returns:
        uint8, shape (H, W, 3).

    Raises:
        ValueError: libjpeg-turbo found anything wrong, harmless things included.

    The caller must have seen `JpegHeader.is_scalable`.
    """
    import simplejpeg

    # min_factor: the scales between 4/8 and 8/8 gain no time (765 against 735 pictures a second) and cost exactness.
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_width=min_size[0], min_height=min_size[1], min_factor=2
    )
    return pixels
