"""The tables beside the corpora, and whether the nasty files did what theirs says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_nasty(seen: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Compare outcomes, open descriptors and growth, as a process of its own reported them, with the table."""
    assert rows
    outcomes = seen["outcomes"]
    wrong = {
        row["file"]: (row["expected"], outcomes[row["file"]])
        for row in rows
        if row["expected"] != "either" and (row["expected"] == "decodes") != (outcomes[row["file"]] == "decodes")
    }
    assert not wrong
    assert seen["descriptors"] == 0
    assert seen["kib"] < 1_000_000
