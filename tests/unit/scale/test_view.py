"""What a node serves, from numbers alone; and the board that they stand on."""

from __future__ import annotations

import json
import multiprocessing
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.scale import view as view_module
from in_memory_datasets.scale.division import Division, Homes, ranges_of
from in_memory_datasets.scale.view import Board, NodeShare, NodeView, Piece, guests_key, slots_of_rows
from in_memory_datasets.store import share_store
from tests.making import IMAGE_SPEC, make_images, make_store

HOMES = Homes(ranges_of([6, 6]))


def make_view(node: int = 0, *, fraction: float = 0.0, job: str = "a job", excluded: tuple[int, ...] = ()) -> NodeView:
    pieces = (Piece(0, 6),) if node == 0 else (Piece(6, 12),)
    return NodeView(job, node, pieces, Division(HOMES, fraction), excluded)


def test_a_view_is_the_same_when_it_is_read_back() -> None:
    """What stands on a board says all of a view."""
    view = make_view(1, fraction=0.5, excluded=(2, 9))
    assert NodeView.from_bytes(view.to_bytes()) == view
    assert json.loads(view.to_bytes())["node"] == 1


def test_samples_are_numbered_without_those_that_are_left_out() -> None:
    """Rows that failed and are left out have no number among the samples."""
    view = make_view(excluded=(0, 3, 4, 9))
    assert view.rows_of(np.arange(8)).tolist() == [1, 2, 5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_own_and_borrowed_samples_are_told_apart(fraction: float) -> None:
    """What is borrowed comes in runs of one owner, and has its places among all that is served."""
    homes = Homes(ranges_of([8, 8, 8, 8]))
    for node in range(4):
        view = NodeView("a job", node, (Piece(8 * node, 8 * node + 8),), Division(homes, fraction, 0, 1))
        parts = view.parts()
        assert len(parts.rows) == 8
        assert (parts.guests // 8 == parts.owners).all()
        assert (parts.owners != node).all()
        own = np.delete(parts.rows, parts.foreign)
        assert (own // 8 == node).all()
        # From the next node on, and of each in the order of its samples.
        distance = (parts.owners - node) % 4
        assert (np.lexsort((parts.guests, distance)) == np.arange(len(distance))).all()


def test_rows_are_found_in_pieces_that_are_numbered_through() -> None:
    """A row's slot counts the rows of the pieces before its own; what is in none has none."""
    pieces = (Piece(10, 14), Piece(0, 3))
    assert slots_of_rows(pieces, np.array([10, 13, 0, 2, 5])).tolist() == [0, 3, 4, 6, -1]


def read_board(board: Board, answers: Any) -> None:
    answers.put((board.version, board.read()))


def test_a_board_is_read_in_other_processes() -> None:
    """What is written is read in a process that was sent the board, also what was written after that."""
    context = multiprocessing.get_context("spawn")
    with closing(Board()) as board:
        board.write(b"first")
        board.write(b"a second, longer text")
        answers = context.Queue()
        process = context.Process(target=read_board, args=(board, answers))
        process.start()
        assert answers.get(timeout=60) == (2, b"a second, longer text")
        process.join()
        answers.close()
        answers.join_thread()


def test_a_share_attaches_to_what_the_view_names() -> None:
    """A node's own samples and those it has borrowed are served by row, from the stores shown at the node."""
    view, images = make_view(fraction=1.0, job="attaches"), make_images(12)
    parts = view.parts()
    own = share_store("attaches", Piece(0, 6).key, lambda show: make_store(IMAGE_SPEC, images[:6]))
    guests = share_store(
        "attaches",
        guests_key(view.division),
        lambda show: make_store(IMAGE_SPEC, [images[row] for row in parts.guests]),
    )
    with own, guests, closing(NodeShare(IMAGE_SPEC, Board())) as share:
        share.show(view)
        served = share.current(0)
        assert served is not None
        number, pieces, slots = served
        assert pieces.table.rows_of(slots).tolist() == parts.rows.tolist()
        for row, slot in zip(parts.rows.tolist(), slots.tolist(), strict=True):
            assert (pieces.sample_at(slot) == images[row]).all()
        assert share.current(number) is None


def test_a_node_that_holds_nothing_serves_nothing() -> None:
    """A node that came later serves what it borrows, and until then nothing."""
    with closing(NodeShare(IMAGE_SPEC, Board())) as share:
        share.show(NodeView("came later", 2, (), Division(Homes(ranges_of([6, 6, 0])))))
        served = share.current(0)
        assert served is not None
        _, pieces, slots = served
        assert (pieces.spec, pieces.num_samples, len(slots)) == (IMAGE_SPEC, 0, 0)


def test_what_nobody_shows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process of the node shows a block, the error says which, after some patience."""
    monkeypatch.setattr(view_module, "_PATIENCE_SECONDS", 0.0)
    with closing(NodeShare(IMAGE_SPEC, Board())) as share:
        share.show(make_view(job="nobody"))
        with pytest.raises(StoreError, match="no process of this node shows its samples"):
            share.current(0)
