"""A step's result vector as named arrays."""

from __future__ import annotations

import numpy as np

from fastgen_jax.batching.inputs import FLOAT_RESULTS, ResultLayout


class StepResults:
    """Read-only views into one result vector; see ``ResultLayout`` for fields and padding."""

    def __init__(self, packed: np.ndarray, layout: ResultLayout) -> None:
        if packed.shape != (layout.size,):
            raise ValueError(f"results of shape {packed.shape}, expected ({layout.size},)")
        self._packed = packed
        self._layout = layout
        self.token_ids: list[int] = packed[layout.slices["token_ids"]].tolist()

    @property
    def num_rows(self) -> int:
        """R: where the prompt's entries begin in the log-probability fields."""
        return self._layout.shape.num_rows

    def field(self, name: str) -> np.ndarray:
        """The named field in its shape and dtype."""
        part = self._packed[self._layout.slices[name]]
        if name in FLOAT_RESULTS:
            part = part.view(np.float32)
        return part.reshape(self._layout.fields[name])
