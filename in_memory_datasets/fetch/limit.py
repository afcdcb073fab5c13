"""How many requests are worth having under way at once."""

from __future__ import annotations

FIRST = 32
LEAST = 8
# Requests that finish for one more way of looking at it: fewer say little, more take long.
_MIN_MEASURED = 16
_GAIN = 0.15  # of what more requests would bring if nothing else were the limit
_TOO_MANY_FAILED = 0.25
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 30.0


class GrowingLimit:
    """A limit that is doubled for as long as twice as many requests finish noticeably more of them a second.

    Where they do not, the smaller number is gone back to, and the larger one tried again after a pause that doubles.
    Where a quarter of all requests time out or break, it is halved. It stays between 8 and `most`, and is left alone
    while something else holds requests back, such as decoding, or the limits of single hosts.

    Args:
        most: What it never exceeds; below 8, what it is.

    Attributes:
        value: The limit now.

    Source: hill climbing, as TCP's slow start does it with its window (RFC 5681, section 3.1), on throughput.

    Example:
        >>> limit, now = GrowingLimit(128), 0.0
        >>> for _ in range(800):  # each answer takes 0.1 s, so that as many come in that time as are under way
        ...     now += 0.1 / limit.value
        ...     limit.ended(now, in_the_way=True, broke=False)
        >>> limit.value
        128
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self.value = min(FIRST, most)
        self._before: int | None = None  # what was doubled, while it is not clear yet whether that brought anything
        self._rate = 0.0  # requests a second at the value that is known to be good
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._next_try = 0.0
        self._num_to_skip = 0  # which were under way before the limit was changed
        self._begin(None)

    def ended(self, now: float, *, in_the_way: bool, broke: bool) -> None:
        """Note that a request has ended.

        Args:
            now: In seconds, by any clock that only goes on.
            in_the_way: Whether there were others that only this limit kept from going out.
            broke: Whether it timed out or its connection broke.
        """
        if self._num_to_skip:
            self._num_to_skip -= 1
            if not self._num_to_skip:
                self._begin(now)
            return
        if self._started_at is None:
            self._begin(now)
            return
        self._num_ended += 1
        self._num_in_the_way += in_the_way
        self._num_broken += broke
        if self._num_ended >= max(self.value, _MIN_MEASURED):
            self._judge(now, self._num_ended / max(now - self._started_at, 1e-9))
            if not self._num_to_skip:
                self._begin(now)

    def stalled(self) -> None:
        """Note that none has ended for a while, and others wait: all that are under way may hang on dead hosts."""
        self._before = None
        self._set(min(self._most, 2 * self.value))

    def _judge(self, now: float, rate: float) -> None:
        if self._num_broken > _TOO_MANY_FAILED * self._num_ended:
            self._before = None
            self._pause(now)
            self._set(max(self._least, self.value // 2))
        elif 2 * self._num_in_the_way < self._num_ended:
            self._before = None
        elif self._before is not None and rate < (1 + _GAIN * (self.value / self._before - 1)) * self._rate:
            value, self._before = self._before, None
            self._pause(now)
            self._set(value)
        else:
            self._rate = rate
            if self._before is not None:
                self._pause_seconds = _FIRST_PAUSE_SECONDS
            self._before = None
            if now >= self._next_try and self.value < self._most:
                self._before = self.value
                self._set(min(self._most, 2 * self.value))

    def _pause(self, now: float) -> None:
        self._next_try = now + self._pause_seconds
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)

    def _set(self, value: int) -> None:
        self._num_to_skip, self.value = self.value, value

    def _begin(self, now: float | None) -> None:
        self._started_at = now
        self._num_ended = self._num_in_the_way = self._num_broken = 0
