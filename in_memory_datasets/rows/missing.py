"""The ways in which tables say that there is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_missing(value: Any) -> bool:
    """Tell None, NaN and the NA and NaT of pandas from values.

    Example:
        >>> is_missing(float("nan")), is_missing(""), is_missing(0.0)
        (True, False, False)
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # named, so that pandas need not be imported
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
