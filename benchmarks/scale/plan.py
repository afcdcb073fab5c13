"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        build: Where inputs are made.
        num_nodes: The clusters that load.
        exchanging: The clusters that exchange.
        num_photos: Pictures that are loaded.
        num_served: Samples of a node whose ranks take epochs.
        num_exchanged: Samples of a node that are exchanged.
        num_lost: Samples of a node that is lost.
        stored_rows: Numbers of rows handed over from a file.
        listed_rows: Numbers of rows handed over from a sequence.
        num_modelled: Samples of the model.
        repeats: Of what is quick.
        slow_repeats: Of what is not.
        quick_to_notice: Whether a lost node is found out after a second, not as Ray does by default.
        warms_up: Whether each load has a turn that does not count.
    """

    build: Path
    num_nodes: tuple[int, ...] = (1, 2, 4)
    exchanging: tuple[int, ...] = (2, 4)
    num_photos: int = 3_000
    num_served: int = 4_000
    num_exchanged: int = 4_000
    num_lost: int = 2_000
    stored_rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    listed_rows: tuple[int, ...] = (100_000, 1_000_000)
    num_modelled: int = 1_000_000_000
    repeats: int = 15
    slow_repeats: int = 3
    quick_to_notice: bool = False
    warms_up: bool = True


def quick(build: Path) -> Plan:
    """Give the least with which everything runs."""
    return Plan(
        build,
        num_nodes=(1,),
        exchanging=(2,),
        num_photos=24,
        num_served=512,
        num_exchanged=200,
        num_lost=40,
        stored_rows=(20_000,),
        listed_rows=(2_000,),
        num_modelled=1_000_000,
        repeats=1,
        slow_repeats=1,
        quick_to_notice=True,
        warms_up=False,
    )
