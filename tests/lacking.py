"""What a test needs of the machine that not every machine has; where CI runs it must be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def lacks(message: str) -> NoReturn:
    """Skip a test for what this machine lacks; in CI, where it would then run nowhere, fail."""
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)
