"""What others' errors say, in words that may be shown and kept."""

from __future__ import annotations

import re

from in_memory_datasets.schema import strip_credentials


def describe(what: str, error: Exception) -> str:
    """Say what went wrong; the message may hold addresses, and text that no store can keep.

    Example:
        >>> describe("reading it", OSError("no answer from https://me:secret@a.example/x"))
        'reading it: OSError: no answer from https://***@a.example/x'
    """
    message = re.sub(r"\S+", lambda word: strip_credentials(word[0]) if "://" in word[0] else word[0], str(error))
    message = message.encode("utf-8", "backslashreplace").decode()
    return f"{what}: {type(error).__name__}: {message}"
