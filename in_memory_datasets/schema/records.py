"""Frozen records that cross a border between two stages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_plus, urlsplit

from in_memory_datasets.errors import ConfigError, SampleError

# A store says the lowest version that can read it: the second is for one in which rows share samples.
FORMAT_VERSION, VERSION_OF_REPEATS = 1, 2

# Every reason a sample can fail for. The order is part of the store format (rows.arrow keeps a number), so new
# ones are appended.
REASONS: tuple[str, ...] = (
    "",
    "dns",
    "tls",
    "refused",
    "reset",
    "timeout",
    "http_404",
    "http_410",
    "http_451",
    "http_403",
    "http_401",
    "http_429",
    "http_status",
    "too_large",
    "truncated",
    "redirect",
    "blocked_address",
    "opt_out",
    "not_found",
    "not_media",
    "corrupt",
    "too_many_pixels",
    "missing_extra",
    "empty",
    "bad_row",
    "bad_url",
    "permission",
    "unreadable",
    "checksum",
    "bad_response",
    "unreachable",
    "no_socket",
    "content_coding",
    "local_file",
)
STAGES: tuple[str, ...] = ("", "row", "fetch", "decode")

SourceKind = Literal["url", "path", "fsspec", "bytes", "object"]
Stage = Literal["row", "fetch", "decode"]
Resize = Literal["stretch", "crop", "pad"]
AudioDtype = Literal["float32", "int16"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one sample's bytes are.

    Attributes:
        kind: "url" (http or https), "path" (a local file), "fsspec" (any other URL), "bytes" (encoded, inline) or
            "object" (already decoded: a PIL picture, a numpy array, an {"array", "sampling_rate"} mapping).
        value: The URL, the path, the bytes or the object.
        name: A file name that may serve the decoder as a hint, never as proof.
    """

    kind: SourceKind
    value: Any
    name: str = ""

    @property
    def label(self) -> str:
        """Show the source without credentials and without data, as reports and stores keep it."""
        if self.kind in ("url", "fsspec"):
            return strip_credentials(str(self.value))
        if self.kind == "path":
            return str(self.value)
        if self.kind == "bytes":
            return f"<{len(self.value)} bytes{' of ' + self.name if self.name else ''}>"
        return f"<{type(self.value).__name__}{' ' + self.name if self.name else ''}>"

    @property
    def host(self) -> str:
        """Name the host an http source is fetched from; "" for every other kind."""
        return host_of(self.value) if self.kind == "url" else ""


def host_of(url: str) -> str:
    """Name the host of an http(s) URL; "" for anything else.

    Example:
        >>> host_of("https://***@images.example:8080/a.jpg"), host_of("/data/a.jpg")
        ('images.example', '')
    """
    if plain := _PLAIN_HOST.match(url):
        return plain[1]
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""


# Most have one like this, and taking every URL apart is a good part of what a loaded one costs.
_PLAIN_HOST = re.compile(r"https?://([a-z0-9.-]+)(?::[0-9]*)?(?:[/?#]|\Z)")


# Schemes of fsspec that lead, or can be made to lead, to files or memory of this machine.
_LOCAL_SCHEMES = frozenset(
    {
        "async_wrapper",
        "asynclocal",
        "asyncwrapper",
        "dir",
        "dvc",
        "file",
        "generic",
        "git",
        "local",
        "memory",
        "reference",
    }
)


def names_this_machine(url: str) -> bool:
    """Tell whether a URL of any scheme, or one in a chain of them, leads to files or memory of this machine.

    Example:
        >>> names_this_machine("file:///etc/passwd"), names_this_machine("zip://a.jpg::/data/x.zip")
        (True, True)
        >>> names_this_machine("s3://bucket/a.jpg"), names_this_machine("zip://a.jpg::s3://bucket/x.zip")
        (False, False)
    """
    parts = url.split("::")
    if "://" not in parts[-1]:
        return True
    return any(part.partition("://")[0].lower() in _LOCAL_SCHEMES for part in parts)


# Whatever stands before the "//", and whatever a user is written with: not all readers of URLs agree on what a scheme
# is, nor on which spaces end an address. In a sentence this may hide words that stand between an address and an "@".
_USER = re.compile(r"(?:\A[\s\0-\x20]*|:[\t\r\n]*)/[\t\r\n]*/([^/?#]*)@")
_MAY_BE_SECRET = re.compile(r"[@?&;]")
_FIELD, _END_OF_FIELD = re.compile(r"[?&;]([^=&;]*)(=?)"), re.compile(r"[&;#]")
# Query fields in which signed or keyed URLs carry what must not be shown.
_SECRET_NAME = re.compile(r"signature|credential|token|secret|passw|api_?key|access_?key|(?:\A|[?])(?:sig|key|auth)\Z")
_DROPPED_BY_READERS = dict.fromkeys(map(ord, "\t\r\n"))  # wherever in a URL: https://url.spec.whatwg.org


def strip_credentials(url: str) -> str:
    """Replace users, passwords and signed query fields of a URL by "***"; in a chain and in a sentence likewise.

    Example:
        >>> strip_credentials("https://me:secret@a.example/x.jpg?size=2&token=abc")
        'https://***@a.example/x.jpg?size=2&token=***'
        >>> strip_credentials("zip://a.jpg::s3://me:secret@bucket/x.zip")
        'zip://a.jpg::s3://***@bucket/x.zip'
    """
    if not _MAY_BE_SECRET.search(url):
        return url
    # Found in the text as it is given, each for itself: what hides one must not hide where another begins.
    shown, done = "", 0
    users = (user.span(1) for user in _USER.finditer(url))
    for start, end in sorted((*users, *_secret_values_of(url))):
        if start > done:
            shown += url[done:start] + "***"
        done = max(done, end)
    return shown + url[done:]


def _secret_values_of(url: str) -> Iterator[tuple[int, int]]:
    done = 0
    while field := _FIELD.search(url, done):
        done = field.end()
        if field[2] and _SECRET_NAME.search(unquote_plus(field[1].translate(_DROPPED_BY_READERS)).lower()):
            end = _END_OF_FIELD.search(url, done)
            done = end.start() if end else len(url)
            yield field.end(), done


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the user's dataset, as far as it matters here.

    Attributes:
        index: Its number in the dataset the user gave.
        source: Where its media is; None where the row has none, and then `error` says why.
        captions: Its captions in order, unaltered; empty where it has none.
        error: Why the row itself is unusable, or None.
    """

    index: int
    source: Source | None
    captions: tuple[str, ...]
    error: SampleError | None = None


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an argument that is none of the choices there are.

    Raises:
        ConfigError: With the choices.
    """
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: choose {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What an image is turned into.

    Attributes:
        image_size: (width, height) in pixels.
        resize: "stretch" to the size, "crop" the centre of the filled size, or "pad" the fitted picture with black.
        recompress: Of pictures that are kept encoded, and have more pixels than are served: ("jpeg", quality) keeps a
            JPEG of the size that is served; None keeps them as they are.
    """

    image_size: tuple[int, int] = (224, 224)
    resize: Resize = "stretch"
    recompress: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        if (
            not isinstance(size, (tuple, list))
            or len(size) != 2
            or not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= 65_535 for side in size)
        ):
            raise ConfigError(f"image_size={size!r}: expected (width, height), two whole numbers from 1 to 65535")
        object.__setattr__(self, "image_size", (size[0], size[1]))  # a list, as JSON gives it, becomes a tuple
        check_choice("resize", self.resize, ("stretch", "crop", "pad"))
        if self.recompress is None:
            return
        match self.recompress:
            case ("jpeg", int(quality)) if not isinstance(quality, bool) and 1 <= quality <= 100:
                object.__setattr__(self, "recompress", ("jpeg", quality))  # a list, likewise
            case _:
                raise ConfigError(f'recompress={self.recompress!r}: expected ("jpeg", quality from 1 to 100) or None')


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """What a clip is turned into.

    Attributes:
        target_sr: Sampling rate in Hz.
        max_duration: Longest clip in seconds; the rest is not decoded.
        dtype: How frames lie at rest: "float32", or "int16" at half the size.
    """

    target_sr: int = 16_000
    max_duration: float = 30.0
    dtype: AudioDtype = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.target_sr, bool) or not isinstance(self.target_sr, int) or self.target_sr <= 0:
            raise ConfigError(f"target_sr={self.target_sr!r}: expected a sampling rate in Hz, such as 16000")
        if not (isinstance(self.max_duration, (int, float)) and 0 < self.max_duration < float("inf")):
            raise ConfigError(f"max_duration={self.max_duration!r}: expected seconds above 0, such as 30.0")
        check_choice("dtype", self.dtype, ("float32", "int16"))
        if self.max_frames == 0:
            raise ConfigError(
                f"max_duration={self.max_duration!r}: less than one frame at {self.target_sr} Hz; give more seconds"
            )

    @property
    def max_frames(self) -> int:
        """Give the longest clip in frames."""
        return round(self.max_duration * self.target_sr)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How sources are fetched.

    Attributes:
        concurrency: Requests under way at once.
        per_host: Requests under way at once to one host.
        timeout: Seconds for one attempt, body included.
        retries: Further attempts after the first.
        max_bytes: Largest source, in bytes.
        user_agent: Sent with every request; None names this library.
        allow_private_addresses: Whether loopback, private, link-local and metadata addresses may be connected to.
        respect_opt_out: Whether a file whose server says `X-Robots-Tag: noai` (or the like) is left out.
        allow_local_files: Whether a dataset's URLs may lead to files of this machine: by `file:`, `local:`, `memory:`
            and the like. Paths are read as they are.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> FetchOptions(timeout=5.0).timeout
        5.0
    """

    concurrency: int = 128
    per_host: int = 32
    timeout: float = 20.0
    retries: int = 3
    max_bytes: int = 256 * 2**20
    user_agent: str | None = None
    allow_private_addresses: bool = False
    respect_opt_out: bool = True
    allow_local_files: bool = False

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("per_host", 1), ("retries", 0), ("max_bytes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"FetchOptions({name}={value!r}): expected a whole number of at least {least}")
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < float("inf")):
            raise ConfigError(f"FetchOptions(timeout={self.timeout!r}): expected seconds above 0")
        if self.user_agent is not None and ("\n" in self.user_agent or "\r" in self.user_agent):
            raise ConfigError(f"FetchOptions(user_agent={self.user_agent!r}): must be a single line")


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample that could not be loaded.

    Attributes:
        index: Row number in the dataset the user gave.
        source: Where its bytes were to come from, without credentials.
        stage: "row", "fetch" or "decode".
        reason: One of `REASONS`, in snake_case.
        detail: What happened, in words.
        host: The host asked; "" where none was.
        attempts: Requests made.
    """

    index: int
    source: str
    stage: str
    reason: str
    detail: str
    host: str = ""
    attempts: int = 0

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source and self.source not in self.detail else ""
        return f"row {self.index}{source}: {self.reason} at {self.stage}: {self.detail}"
