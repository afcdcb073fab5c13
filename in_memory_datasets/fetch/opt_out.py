"""Whether a server asks that a file be left out of training sets."""

from __future__ import annotations

from collections.abc import Iterable

DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
# These carry a value after a colon, which therefore names no agent.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def find_opt_out(values: Iterable[str], agent: str) -> str | None:
    """Find the first directive of X-Robots-Tag headers that tells `agent` to leave a file out.

    Args:
        values: Every X-Robots-Tag header of the answer.
        agent: The product name in our User-Agent, such as "in-memory-datasets".

    Returns:
        "noai", "noimageai", "noindex", "noimageindex" or "none" (which stands for noindex); None where we may.

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
        for part in value.lower().split(","):
            directive = part.strip()
            name, colon, rest = directive.partition(":")
            name = name.rstrip()
            # An agent is one word; a date after unavailable_after has a colon too.
            if colon and name not in _VALUED and not any(char.isspace() for char in name):
                addressed_to_us = name in (agent, "*")
                directive = rest.strip()
            if addressed_to_us and directive in DIRECTIVES:
                return directive
    return None


def find_product(user_agent: str) -> str:
    """Take the product name from a User-Agent, to which a directive may be addressed.

    Example:
        >>> find_product("MyBot/1.0 (+https://bot.example)")
        'mybot'
    """
    return (user_agent.split() or [""])[0].partition("/")[0].lower()
