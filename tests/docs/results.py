"""Numbers of results, changed one after the other to see whether the page of benchmarks follows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report.page import make_page

MACHINE = {"date": "2026-01-02 03:04 UTC", "processors": "2", "torch": "2.13.0"}


def places(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Find every number below a record, with the keys that lead to it."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from places(value, (*path, key))
    elif isinstance(record, list):
        for i, value in enumerate(record):
            yield from places(value, (*path, i))
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield path


def change(record: Any, path: tuple[Any, ...]) -> Any:
    """Copy a record with one number changed by more than any rounding hides."""
    changed = copy.deepcopy(record)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = 3 * at[path[-1]] + 1
    return changed


def unmoved(results: Path, name: str, chosen: Callable[[tuple[Any, ...]], bool]) -> list[tuple[Any, ...]]:
    """List the chosen numbers of one file of results that can change without the text of the page."""
    path = results / name / "results.json"
    record = json.loads(path.read_text("utf-8"))
    before = make_page(results).text
    found = [place for place in places(record) if chosen(place)]
    assert found
    left = []
    for place in found:
        path.write_text(json.dumps(change(record, place)), "utf-8")
        if make_page(results).text == before:
            left.append(place)
    return left
