"""What the simulator asks of a cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastgen_jax.sim.load import StepLoad


class CostModel(Protocol):
    """Says how long a step takes."""

    def seconds(self, load: StepLoad) -> float:
        """Of one step of this load, host work that isn't hidden included; above 0."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantCost:
    """Every step takes equally long: time counts steps."""

    step: float = 1.0

    def seconds(self, load: StepLoad) -> float:
        """The same for all."""
        return self.step
