"""Frozen records that cross a border between two stages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

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
    "http_408",
    "http_5xx",
    "unreachable",
    "no_socket",
    "content_coding",
    "local_file",
)
STAGES: tuple[str, ...] = ("", "row", "fetch", "decode")

_HINTS = {
    "blocked_address": "  (private addresses are fetched with fetch=FetchOptions(allow_private_addresses=True))",
    "local_file": "  (files of this machine are read with fetch=FetchOptions(allow_local_files=True))",
}

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
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""


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


# Query fields in which signed or keyed URLs carry what must not be shown.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")
_SECRET_FIELD = re.compile(
    r"(?i)([?&;](?:[^=&;]*(?:signature|credential|token|secret|passw|api_?key|access_?key)[^=&;]*|sig|key|auth)=)[^&;#]*"
)


def strip_credentials(url: str) -> str:
    """Replace users, passwords and signed query fields of a URL by "***"; in a chain and in a sentence likewise.

    Example:
        >>> strip_credentials("https://me:secret@a.example/x.jpg?size=2&token=abc")
        'https://***@a.example/x.jpg?size=2&token=***'
        >>> strip_credentials("zip://a.jpg::s3://me:secret@bucket/x.zip")
        'zip://a.jpg::s3://***@bucket/x.zip'
    """
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            url = urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
    except ValueError:  # not a URL that can be split: hide whatever stands before an @
        url = re.sub(r"//[^/@]*@", "//***@", url)
    url = _USER.sub(r"\1***@", url)
    return _SECRET_FIELD.sub(r"\1***", url)


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
        allow_local_files: Whether a dataset may name files of this machine where that is not plainly its purpose: by
            `file:`, `local:`, `memory:` and the like, and as bare paths in a column whose first source is a URL.

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


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did; prints as a short summary.

    Attributes:
        num_samples: Rows taken from the dataset.
        num_ok: Samples that loaded.
        num_failed: Samples that did not.
        num_empty_captions: Rows without a caption, which have "" for one.
        by_reason: How many failed for each reason, commonest first.
        failures: Every failure, by ascending index.
        seconds: How long the load took.
        bytes_fetched: Encoded bytes read from all sources.
        nbytes: Bytes held at rest.
        num_decoded: Samples that lie decoded.
        num_encoded: Samples that lie encoded, and are decoded whenever they are served.
        num_on_disk: Samples of a `cache_dir` for which there is no room in memory, decoded or encoded.
        num_unique: Samples that are stored: rows that name the same source share one.
    """

    num_samples: int
    num_ok: int
    num_failed: int
    num_empty_captions: int
    by_reason: dict[str, int]
    failures: list[Failure] = field(repr=False)
    seconds: float
    bytes_fetched: int
    nbytes: int
    num_decoded: int
    num_encoded: int
    num_on_disk: int
    num_unique: int = 0

    def __str__(self) -> str:
        rate = self.num_samples / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{self.num_ok:,} of {self.num_samples:,} samples loaded in {self.seconds:.1f} s ({rate:,.0f}/s); "
            f"{format_bytes(self.bytes_fetched)} fetched, {format_bytes(self.nbytes)} in memory"
        ]
        if 0 < self.num_unique < self.num_samples:
            lines.append(f"{self.num_samples:,} rows share {self.num_unique:,} samples")
        if self.num_encoded or self.num_on_disk:
            lines.append(
                f"{self.num_decoded:,} lie decoded, {self.num_encoded:,} encoded, {self.num_on_disk:,} on disk"
            )
        if self.num_failed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.by_reason.items())
            lines.append(f"{self.num_failed:,} failed: {reasons}")
            lines.extend(f"  {failure}" for failure in self.failures[:3])
            if self.num_failed > 3:
                lines.append(f"  … and {self.num_failed - 3:,} more in .failures")
            lines.extend(hints_for(self.by_reason))
        if self.num_empty_captions:
            lines.append(f"{self.num_empty_captions:,} rows have no caption")
        return "\n".join(lines)


def count_reasons(failures: Iterable[Failure]) -> dict[str, int]:
    """Count failures by reason, commonest first."""
    return dict(Counter(failure.reason for failure in failures).most_common())


def hints_for(reasons: Collection[str]) -> list[str]:
    """Say which option lets through what failed for one of these reasons; a line for each that has one."""
    return [hint for reason, hint in _HINTS.items() if reason in reasons]


LimitedBy = Literal["cgroup", "machine", "memory_limit"]


@dataclass(frozen=True, slots=True)
class TierPlan:
    """What a dataset would take in one form.

    Attributes:
        name: "decoded", "int16" (clips at half the size) or "encoded".
        bytes_needed: What the block would hold; None where that is not known.
        fits: Whether that fits; False where it is not known to.
        num_samples_that_fit: The most samples that would.
        is_upper_bound: True where lengths are unknown beforehand and the longest was assumed.
        is_estimate: True where a part of the samples was measured and stands for all.
    """

    name: str
    bytes_needed: int | None
    fits: bool
    num_samples_that_fit: int
    is_upper_bound: bool
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a dataset would take, computed before anything is fetched; prints as a table.

    Attributes:
        num_samples: Samples asked for, with `max_samples="auto"` those that fit; None where the dataset does not know
            its length.
        bytes_needed: What the block will hold, in the `storage` asked for; None where that is not known.
        bytes_available: What may be used.
        fits: Whether it fits; False where it is not known to.
        num_samples_that_fit: The most samples that would.
        limited_by: What sets the limit: "cgroup" (the container), "machine" or "memory_limit" (the argument).
        is_upper_bound: True where lengths are unknown beforehand and the longest was assumed.
        storage: The form asked for.
        tiers: What every form would take.
        num_decoded: With `storage="auto"`, how many would lie decoded; None where that is not known.
        num_on_disk: And how many would find no room in memory, even encoded.
        seconds: How long the load may take, from a probe; None without one.
        num_probed: Samples that were fetched for it.
    """

    num_samples: int | None
    bytes_needed: int | None
    bytes_available: int
    fits: bool
    num_samples_that_fit: int
    limited_by: LimitedBy
    is_upper_bound: bool = False
    storage: str = "decoded"
    tiers: tuple[TierPlan, ...] = ()
    num_decoded: int | None = None
    num_on_disk: int | None = None
    seconds: float | None = None
    num_probed: int = 0

    def __str__(self) -> str:
        lines = [
            f"{'samples':<18}" + ("unknown" if self.num_samples is None else f"{self.num_samples:,}"),
            f"{'memory available':<18}{format_bytes(self.bytes_available)} ({self.limited_by})",
            f"{'':<18}{'memory needed':<18}{'fits':<6}{'samples that fit':>16}",
        ]
        for tier in self.tiers or (_only_tier(self),):
            kind = "at most " if tier.is_upper_bound else "about " if tier.is_estimate else ""
            needed = "unknown" if tier.bytes_needed is None else kind + format_bytes(tier.bytes_needed)
            fits = "yes" if tier.fits else "?" if tier.bytes_needed is None else "no"
            lines.append(f"{'  ' + tier.name:<18}{needed:<18}{fits:<6}{tier.num_samples_that_fit:>16,}")
        if self.num_decoded is not None and self.num_samples is not None:
            num_encoded = self.num_samples - self.num_decoded - (self.num_on_disk or 0)
            mixture = f"{self.num_decoded:,} decoded, {num_encoded:,} encoded"
            lines.append(f"{'mixture':<18}{mixture}" + (f", {self.num_on_disk:,} on disk" if self.num_on_disk else ""))
        if self.seconds is not None:
            lines.append(f"{'load time':<18}about {_format_seconds(self.seconds)} ({self.num_probed} samples probed)")
        return "\n".join(lines)


def _only_tier(plan: MemoryPlan) -> TierPlan:
    return TierPlan(
        plan.storage, plan.bytes_needed, plan.fits, plan.num_samples_that_fit, plan.is_upper_bound, is_estimate=False
    )


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_bytes(num_bytes: int) -> str:
    """Write a size with three figures in decimal units.

    Example:
        >>> format_bytes(1_505_280_000)
        '1.51 GB'
    """
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 1000 else f"{size:,.0f} TB"


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)[bB]?\s*")


def parse_bytes(size: int | str, *, name: str = "memory_limit") -> int:
    """Read a size: a number of bytes, or text such as "16GB" (16·10⁹) or "16GiB" (16·2³⁰).

    Raises:
        ConfigError: It is neither.

    Example:
        >>> parse_bytes("16GB"), parse_bytes("1.5 GiB"), parse_bytes(1024)
        (16000000000, 1610612736, 1024)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None or float(match[1]) == 0 or (match[3] and not match[2]):
        raise ConfigError(f"{name}={size!r}: expected bytes above 0, or text such as '16GB' or '16GiB'")
    power = "KMGTP".index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
