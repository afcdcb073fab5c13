"""Progress bars, where somebody can see them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm.auto import tqdm

_LOADING = "Loading into memory"

# Whether to draw progress bars; or who is told how many more samples are done, where another process draws them.
Progress = bool | Callable[[int], object]


class _Told:
    """Stands for a bar that somebody else draws."""

    disable = True

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._tell = tell

    def update(self, num_more: int = 1) -> None:
        """Tell it."""
        self._tell(num_more)


@contextmanager
def progress_bar(wanted: Progress, total: int | None, doing: str = _LOADING, *, unit: str = "sample") -> Iterator[Any]:
    """Show how far some work is: `update` it by what was done; bytes ("B") are shown in larger units."""
    if not isinstance(wanted, bool):
        yield _Told(wanted if unit == "sample" and doing == _LOADING else lambda num_more: None)
        return
    # tqdm's own disable=None would also silence notebooks, whose streams are no terminals.
    visible = wanted and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(total=total, desc=doing, unit=unit, unit_scale=unit == "B", disable=not visible) as bar:
        yield bar


@contextmanager
def waiting_bar(
    wanted: Progress, total: int | None, doing: str = "Another process is loading", *, unit: str = "sample"
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
