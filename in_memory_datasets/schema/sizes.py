"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from in_memory_datasets.errors import ConfigError


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
