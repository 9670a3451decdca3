"""What prompts consist of: tokens nobody else has, or beginnings that many share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.workloads.lengths import Lengths


class Prompts(Protocol):
    """Makes prompts; only their length and who shares a beginning with whom matters."""

    def draw(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """The prompt of the request with this number in the workload."""
        ...


@dataclass(frozen=True, slots=True)
class UniquePrompts:
    """Prompts that share no beginning with any other."""

    lengths: Lengths

    def draw(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """The number, over and over."""
        return (number,) * self.lengths.draw(rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefixPrompts:
    """Prompts that begin with one of a few long texts and end on their own.

    Attributes:
        num_prefixes: different beginnings, each as likely.
        prefix_tokens: their length.
        own: lengths of the rest.
    """

    num_prefixes: int
    prefix_tokens: int
    own: Lengths

    def __post_init__(self) -> None:
        """Refuse a prefix that isn't there."""
        for name in ("num_prefixes", "prefix_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))

    def draw(self, number: int, rng: np.random.Generator) -> tuple[int, ...]:
        """A shared beginning, then the number over and over."""
        prefix = int(rng.integers(self.num_prefixes))
        # Negative: no number of a request.
        return (-1 - prefix,) * self.prefix_tokens + (number,) * self.own.draw(rng)
