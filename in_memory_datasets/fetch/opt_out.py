"""Whether a server asks that a file be left out of training sets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "unavailable_after"})
# These carry a value after a colon, which therefore names no agent.
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview"})
# Its date may have commas and colons of its own: "Saturday, 25-Jun-2010 15:00:00 PST", "2010-06-25T15:00:00Z".
_EXPIRY = re.compile(r"unavailable_after\s*:\s*((?:[a-z]+,\s*)?[^,]*)")


def find_opt_out(values: Iterable[str], agent: str, now: datetime | None = None) -> str | None:
    """Find the first directive of X-Robots-Tag headers that tells `agent` to leave a file out.

    Args:
        values: Every X-Robots-Tag header of the answer.
        agent: The product name in our User-Agent, such as "in-memory-datasets".
        now: The time, where it is not the clock's.

    Returns:
        "noai", "noimageai", "noindex", "noimageindex", "none" (which stands for noindex) or "unavailable_after" (which
        does from its date on); None where we may.

    A directive may be addressed ("googlebot: noindex"); an address holds for the rest of its header, or until the
    next one, and what is addressed to others is ignored.

    Source: Google Search Central, "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications";
    noai and noimageai: DeviantArt, 2022.

    Example:
        >>> find_opt_out(["nofollow, noai"], "in-memory-datasets")
        'noai'
        >>> find_opt_out(["googlebot: noindex"], "in-memory-datasets") is None
        True
    """
    agent = agent.lower()
    for value in values:
        addressed_to_us = True
        value = value.lower()
        if "unavailable_after" in value:
            value = _EXPIRY.sub(lambda match: "unavailable_after" if _is_past(match[1], now) else "", value)
        for part in value.split(","):
            directive = part.strip()
            name, colon, rest = directive.partition(":")
            name = name.rstrip()
            # An agent is one word.
            if colon and name not in _VALUED and not any(char.isspace() for char in name):
                addressed_to_us = name in (agent, "*")
                directive = rest.strip()
            if addressed_to_us and directive in DIRECTIVES:
                return directive
    return None


def _is_past(date: str, now: datetime | None) -> bool:
    """Tell whether a date lies behind us; one that cannot be read does not."""
    date = date.strip().upper()
    try:
        at = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        try:
            at = datetime.fromisoformat(date.replace("Z", "+00:00"))
        except ValueError:
            return False
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return at <= (now or datetime.now(timezone.utc))


def find_product(user_agent: str) -> str:
    """Take the product name from a User-Agent, to which a directive may be addressed.

    Example:
        >>> find_product("MyBot/1.0 (+https://bot.example)")
        'mybot'
    """
    return (user_agent.split() or [""])[0].partition("/")[0].lower()
