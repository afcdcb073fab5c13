"""Every input that fuzzing begins with, or has found, keeps the promises of its target; without atheris."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, kept_corpus


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_keeps_the_promises_of_its_target(name: str) -> None:
    target, seeds = TARGETS[name]
    num_seeds = 0
    for seed in seeds():
        target(seed)
        num_seeds += 1
    assert num_seeds > 0 or (name == "rare_clips" and find_spec("av") is None)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_that_was_found_keeps_the_promises_of_its_target(name: str) -> None:
    target, _ = TARGETS[name]
    files = list(kept_corpus(name))
    for file in files:
        target(file.read_bytes())
    assert files, f"{CORPUS / name} is empty"


def test_the_corpus_is_small_and_holds_nothing_but_inputs_of_targets() -> None:
    assert {place.name for place in CORPUS.iterdir()} == set(TARGETS)
    assert sum(file.stat().st_size for file in CORPUS.glob("*/*")) < 10**6


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_and_a_few_bytes_of_nothing_keep_the_promises_too(name: str) -> None:
    target, _ = TARGETS[name]
    for data in (b"", b"\0", b"\xff" * 40, bytes(range(256)), b"\n\n\n"):
        target(data)
