"""What the first bytes of a clip, and for formats without a mark its file name, say about its format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """A container.

    Attributes:
        name: As people call it.
        demuxer: As FFmpeg calls it.
        is_native: Whether a file of it that libsndfile does not open is damaged. Not so for Ogg, which may hold FLAC
            or Speex.
    """

    name: str
    demuxer: str
    is_native: bool = False


_SIGNATURES: tuple[tuple[int, bytes, AudioFormat], ...] = (
    (0, b"RIFF", AudioFormat("WAV", "wav", is_native=True)),
    (0, b"RF64", AudioFormat("WAV", "wav", is_native=True)),
    (0, b"riff", AudioFormat("Wave64", "w64", is_native=True)),
    (0, b"FORM", AudioFormat("AIFF", "aiff", is_native=True)),
    (0, b"fLaC", AudioFormat("FLAC", "flac", is_native=True)),
    (0, b"OggS", AudioFormat("Ogg", "ogg")),
    (0, b"caff", AudioFormat("CAF", "caf", is_native=True)),
    (0, b".snd", AudioFormat("AU", "au", is_native=True)),
    (4, b"ftyp", AudioFormat("MP4/M4A", "mov")),
    (4, b"moov", AudioFormat("MP4/M4A", "mov")),
    (0, b"\x1a\x45\xdf\xa3", AudioFormat("WebM/Matroska", "matroska")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", AudioFormat("WMA", "asf")),
    (0, b"ADIF", AudioFormat("AAC", "aac")),
    (0, b"#!AMR", AudioFormat("AMR", "amr")),
    (0, b"wvpk", AudioFormat("WavPack", "wv")),
    (0, b"MAC ", AudioFormat("Monkey's Audio", "ape")),
    (0, b"TTA1", AudioFormat("True Audio", "tta")),
    (0, b"MPCK", AudioFormat("Musepack", "mpc8")),
    (0, b"MP+", AudioFormat("Musepack", "mpc")),
    (0, b"\x0b\x77", AudioFormat("AC-3", "ac3")),
    (0, b"FLV\x01", AudioFormat("FLV", "flv")),
)
_MP3 = AudioFormat("MP3", "mp3", is_native=True)
_ADTS = AudioFormat("AAC", "aac")
# These have no mark of their own, so that only the name can tell.
_BY_EXTENSION = {"g722": AudioFormat("G.722", "g722"), "mp3": _MP3, "aac": _ADTS}


def sniff_audio(data: bytes, name: str) -> AudioFormat | None:
    """Tell the container of a clip; None where neither bytes nor name say.

    Example:
        >>> sniff_audio(b"\\0\\0\\0\\x20ftypM4A ", "").name, sniff_audio(b"<html>", "song.mp4")
        ('MP4/M4A', None)
    """
    for offset, magic, found in _SIGNATURES:
        if data.startswith(magic, offset):
            return found
    if data[:3] == b"ID3":
        # An ID3v2 tag may precede more than MP3. Its size is four bytes of seven bits.
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
        rest = data[10 + size :]
        return _MP3 if not rest or rest[:3] == b"ID3" else sniff_audio(rest, name) or _MP3
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        # An MPEG frame; layer 0 means AAC in ADTS.
        return _ADTS if data[1] & 0xF6 == 0xF0 else _MP3
    return None if looks_like_text(data) else _BY_EXTENSION.get(extension(name))


def extension(name: str) -> str:
    """Give the lower-case extension of a file name or URL, without its dot.

    Example:
        >>> extension("https://a.example/Call.G722?token=1")
        'g722'
    """
    file_name = name.split("?", 1)[0].split("#", 1)[0].rpartition("/")[2]
    return file_name.rpartition(".")[2].lower() if "." in file_name else ""


def looks_like_text(data: bytes) -> bool:
    """Tell whether the first bytes are text, such as the page a server sends instead of a clip."""
    start = data[:256]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not merely a character cut in two
            return start.lstrip().startswith(b"<")
        text = start[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
