"""Progress bars, where somebody can see them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm.auto import tqdm


@contextmanager
def progress_bar(
    wanted: bool, total: int | None, doing: str = "Loading into memory", *, unit: str = "sample"
) -> Iterator[Any]:
    """Show how far some work is: `update` it by what was done; bytes ("B") are shown in larger units."""
    # tqdm's own disable=None would also silence notebooks, whose streams are no terminals.
    visible = wanted and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(total=total, desc=doing, unit=unit, unit_scale=unit == "B", disable=not visible) as bar:
        yield bar


@contextmanager
def waiting_bar(
    wanted: bool, total: int | None, doing: str = "Another process is loading", *, unit: str = "sample"
) -> Iterator[Callable[[int], None]]:
    """Show how far another process is, once that is heard of."""
    with ExitStack() as shown:
        bar: Any = None

        def show(num_done: int) -> None:
            nonlocal bar
            if bar is None:
                bar = shown.enter_context(progress_bar(wanted, total, doing, unit=unit))
            bar.update(num_done - bar.n)

        yield show
