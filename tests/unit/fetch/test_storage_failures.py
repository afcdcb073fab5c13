"""What the answer of a storage says about whether to ask again, and how soon."""

from __future__ import annotations

import pytest

from in_memory_datasets.fetch.storage_failures import judge_storage_status


@pytest.mark.parametrize(
    ("status", "reason", "transient", "overloaded"),
    [
        (400, "http_status", False, False),
        (401, "permission", False, False),
        (408, "http_status", True, False),
        (429, "http_429", True, True),
        (500, "http_status", True, False),
        (503, "http_status", True, True),
    ],
)
def test_a_storage_that_asks_for_fewer_requests_is_told_from_one_that_fails(
    status: int, reason: str, transient: bool, overloaded: bool
) -> None:
    failure = judge_storage_status(status, {"retry-after": "3"})
    assert failure is not None
    assert (failure.reason, failure.transient, failure.overloaded) == (reason, transient, overloaded)
    assert failure.retry_after == 3.0


@pytest.mark.parametrize("status", [200, 206, 403, 404])
def test_what_its_error_says_better_is_left_to_it(status: int) -> None:
    assert judge_storage_status(status) is None


def test_a_storage_that_sends_elsewhere_is_not_asked_again() -> None:
    failure = judge_storage_status(301)
    assert failure is not None
    assert (failure.reason, failure.transient) == ("redirect", False)
