"""How long steps take, learned from when they were planned."""

from __future__ import annotations

_MEMORY = 0.98  # weight of the past, per step
_MIN_STEPS = 8


class StepTimes:
    """A line through (tokens, seconds) of the last steps, older ones counting less.

    Two launches are in flight: when a plan is asked for, the one before the last has just been
    read. So the time between two plans is that of the plan two before.
    """

    __slots__ = ("_count", "_now", "_sums", "_tokens")

    def __init__(self) -> None:
        self._count = 0
        self._now: float | None = None
        self._tokens = (0, 0)  # of the last two plans, the older first
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # of weights, x, y, xx, xy

    def observe(self, now: float, num_tokens: int) -> None:
        """Another plan is asked for; the last one had ``num_tokens``, 0 where it was empty."""
        older, newer = self._tokens
        before, self._now = self._now, now
        self._tokens = (newer, num_tokens)
        # After an empty plan the time between two plans says how long nobody came.
        if before is None or not older or not newer or not num_tokens:
            return
        x, y = float(newer), now - before
        values = (1.0, x, y, x * x, x * y)
        self._sums = tuple(_MEMORY * old + new for old, new in zip(self._sums, values, strict=True))
        self._count += 1

    def tokens_within(self, seconds: float, most: int) -> int | None:
        """Most tokens of a step that ends within ``seconds``; None before enough was seen."""
        if self._count < _MIN_STEPS:
            return None
        n, sx, sy, sxx, sxy = self._sums
        spread = n * sxx - sx * sx
        slope = (n * sxy - sx * sy) / spread if spread > 1e-9 * sxx * n else sy / sx
        slope = max(slope, 0.0)
        start = (sy - slope * sx) / n
        if slope == 0.0:
            return most if start <= seconds else 0
        return max(0, min(most, int((seconds - start) / slope)))
