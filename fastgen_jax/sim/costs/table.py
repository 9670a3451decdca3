"""Step times from a measured curve of latency over tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.load import StepLoad

LLAMA_2_13B_A100_MS: Mapping[int, float] = {
    64: 22.0,
    128: 28.5,
    256: 35.0,
    384: 48.5,
    512: 67.0,
    640: 75.0,
    768: 92.5,
    896: 121.5,
    1024: 128.5,
    1152: 143.0,
    1280: 161.0,
    1536: 187.0,
    1664: 217.0,
    2048: 258.0,
}
"""Milliseconds of one forward pass by tokens, batch 1, read off a figure to about a millisecond.

Holmes et al., 2024, arXiv 2401.08671, section 3.1. The paper names neither model nor GPU:
throughput times latency over tokens is 26 GFLOP a token at every point, which is Llama-2-13B, and
the best rate is 69 % of an A100's.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCost:
    """A curve over tokens, straight between its points and on beyond its ends, and fixed terms.

    Attributes:
        points: (tokens, seconds), ascending in tokens; at least two.
        per_step: seconds added to each step: host work, launches.
        per_row: seconds added for each request in the step: its sampling and bookkeeping.
        per_token: seconds added for each token, such as its share of collectives.
        per_key: seconds added for each key that attention reads.
    """

    points: tuple[tuple[int, float], ...]
    per_step: float = 0.0
    per_row: float = 0.0
    per_token: float = 0.0
    per_key: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a table that is no curve."""
        ascends = all(a[0] < b[0] for a, b in pairwise(self.points))
        if len(self.points) < 2 or not ascends or any(s <= 0 for _, s in self.points):
            raise ConfigError(
                "must hold at least two (tokens, seconds), ascending in tokens, above 0 seconds",
                field="points",
                value=self.points,
            )

    @classmethod
    def scaled(
        cls,
        milliseconds: Mapping[int, float],
        factor: float = 1.0,
        *,
        per_step: float = 0.0,
        per_row: float = 0.0,
        per_token: float = 0.0,
        per_key: float = 0.0,
    ) -> TableCost:
        """A measured curve, times a factor: that of another model's FLOPs on each device."""
        points = tuple((tokens, factor * ms / 1e3) for tokens, ms in sorted(milliseconds.items()))
        return cls(
            points=points,
            per_step=per_step,
            per_row=per_row,
            per_token=per_token,
            per_key=per_key,
        )

    def seconds(self, load: StepLoad) -> float:
        """The curve at the load's tokens, and what is added."""
        return (
            self.curve(load.num_tokens)
            + self.per_step
            + self.per_row * load.num_rows
            + self.per_token * load.num_tokens
            + self.per_key * load.num_keys
        )

    def curve(self, num_tokens: int) -> float:
        """The table's time of so many tokens."""
        points = self.points
        right = min(max(bisect_right(points, (num_tokens,)), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[right - 1], points[right]
        return y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0)
