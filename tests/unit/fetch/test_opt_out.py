"""How X-Robots-Tag headers are read."""

from __future__ import annotations

import pytest

from in_memory_datasets.fetch.opt_out import find_opt_out, find_product

US = "in-memory-datasets"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([""], None),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["noindex"], "noindex"),
        (["noimageindex , nofollow"], "noimageindex"),
        (["none"], "none"),
        (["nofollow", "noai"], "noai"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["googlebot: nofollow", "noindex"], "noindex"),
        (["In-Memory-Datasets: noai"], "noai"),
        (["in-memory-datasets:nofollow,noai"], "noai"),
        (["googlebot: noindex, in-memory-datasets: noai"], "noai"),
        (["noai, googlebot: noindex"], "noai"),
        (["*: noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["unavailable_after: Saturday, 25-Jun-2010 15:00:00 PST, noindex"], "noindex"),
        (["max-snippet: 50, max-image-preview: large, noai"], "noai"),
        (["max-snippet: 50, googlebot: noai"], None),
        (["noindexing"], None),
    ],
)
def test_directives_count_as_they_are_addressed(headers: list[str], found: str | None) -> None:
    assert find_opt_out(headers, US) == found


def test_the_product_is_the_first_word_of_the_user_agent() -> None:
    assert [find_product(text) for text in ("MyBot/1.0 (+x)", "mybot", " ", "")] == ["mybot", "mybot", "", ""]
