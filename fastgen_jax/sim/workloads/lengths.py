"""How long prompts and outputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastgen_jax.errors import ConfigError


class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, rng: np.random.Generator) -> int:
        """One length, at least 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalLengths:
    """Normally distributed lengths, as in the FastGen paper, kept between ``least`` and ``most``.

    Attributes:
        mean: tokens.
        deviation: standard deviation, relative to the mean. The paper says 30 % variance; its
            scripts take 0.3 of the mean as the deviation.
        least, most: lengths beyond are moved there.
    """

    mean: float
    deviation: float = 0.3
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no length."""
        if self.mean < 1 or self.deviation < 0 or self.least < 1:
            raise ConfigError(
                "must be lengths from 1 on, and a deviation from 0 on",
                field="mean, deviation, least",
                value=(self.mean, self.deviation, self.least),
            )

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        length = max(self.least, int(rng.normal(self.mean, self.deviation * self.mean)))
        return length if self.most is None else min(length, self.most)


@dataclass(frozen=True, slots=True)
class UniformLengths:
    """Every length from ``least`` to ``most`` alike; the same twice is a fixed length."""

    least: int
    most: int

    def __post_init__(self) -> None:
        """Refuse what is no length."""
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                "must ascend, from 1 on", field="least, most", value=(self.least, self.most)
            )

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        return int(rng.integers(self.least, self.most, endpoint=True))
