"""How X-Robots-Tag headers are read."""

from __future__ import annotations

from datetime import datetime, timezone

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
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], "unavailable_after"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], None),
        (["unavailable_after: Saturday, 25-Jun-30 15:00:00 PST, noindex"], "noindex"),
        (["noarchive, Unavailable_After: Friday, 25-Jun-2010 15:00:00 PST"], "unavailable_after"),
        (["unavailable_after: 2010-06-25T15:00:00Z"], "unavailable_after"),
        (["unavailable_after: 2010-06-25"], "unavailable_after"),
        (["unavailable_after: 2030-06-25T15:00:00+02:00"], None),
        (["unavailable_after: soon"], None),
        (["unavailable_after:"], None),
        (["unavailable_after: 32 Foo 99999 15:00:00 PST"], None),
        (["googlebot: unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["in-memory-datasets: unavailable_after: 25 Jun 2010 15:00:00 PST"], "unavailable_after"),
        (["googlebot: unavailable_after: 25 Jun 2010 15:00:00 PST, in-memory-datasets: noai"], "noai"),
        (["googlebot : NOAI"], None),
        (["googlebot: noai", "bingbot: noai", "IN-MEMORY-DATASETS: NoIndex"], "noindex"),
        ([",, ,noai,"], "noai"),
        (["noai; noindex"], None),
        (["max-snippet: 50, max-image-preview: large, noai"], "noai"),
        (["max-snippet: 50, googlebot: noai"], None),
        (["noindexing"], None),
    ],
)
def test_directives_count_as_they_are_addressed(headers: list[str], found: str | None) -> None:
    assert find_opt_out(headers, US, datetime(2020, 1, 1, tzinfo=timezone.utc)) == found


def test_the_product_is_the_first_word_of_the_user_agent() -> None:
    assert [find_product(text) for text in ("MyBot/1.0 (+x)", "mybot", " ", "")] == ["mybot", "mybot", "", ""]
