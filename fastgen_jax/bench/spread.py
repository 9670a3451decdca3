"""What is quoted of numbers that were measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, lowest and highest of several numbers; the median is what gets quoted."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number; ValueError for none."""
        if not values:
            raise ValueError("no values to summarize")
        return cls(
            median=statistics.median(values),
            low=min(values),
            high=max(values),
            count=len(values),
        )
