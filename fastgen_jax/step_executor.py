"""What the engine needs of a device; nothing here imports jax, so a test double needs none."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fastgen_jax.batching import StepResults, StepShape


class PendingStep(Protocol):
    """A step that was launched and whose result is on its way to the host."""

    def read(self) -> StepResults:
        """The step's results; waits for the device."""
        ...


class StepExecutor(Protocol):
    """Runs row writes and steps in the order of the calls, later than the calls return.

    So an array handed over must not change afterwards.
    """

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Put a request's settings and tokens into a device row, before the next launch."""
        ...

    def launch(self, shape: StepShape, packed: np.ndarray) -> PendingStep:
        """Start a step and return at once."""
        ...

    def close(self) -> None:
        """Free all device memory; nothing can be launched afterwards."""
        ...
