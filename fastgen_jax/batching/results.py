"""A step's result vector as named arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgen_jax.batching.inputs import FLOAT_RESULTS, ResultLayout


class StepResults:
    """Read-only views into one result vector; see ``ResultLayout`` for fields and padding.

    ``token_ids`` is a list, since every one of them is looked at. Of a chain of steps these are
    the results of the first; ``step`` gives those of any.
    """

    def __init__(self, packed: np.ndarray, layout: ResultLayout, *, step: int = 0) -> None:
        """ValueError for a vector that isn't int32 of the layout's size."""
        if packed.shape != (layout.size,) or packed.dtype != np.int32:
            raise ValueError(
                f"results of {packed.dtype} {packed.shape}, expected int32 ({layout.size},)"
            )
        self._whole = packed
        self._packed = packed[step * layout.step_size : (step + 1) * layout.step_size]
        self._step = step
        self._layout = layout
        self._fields: dict[str, np.ndarray] = {}
        self._drawn: dict[str, list[Any]] = {}
        self.token_ids: list[int] = self._packed[layout.slices["token_ids"]].tolist()

    @property
    def num_rows(self) -> int:
        """R: where the prompt's entries begin in the log-probability fields."""
        return self._layout.shape.num_rows

    def step(self, index: int) -> StepResults:
        """The results of one step of the chain."""
        if index == self._step:
            return self
        return StepResults(self._whole, self._layout, step=index)

    def field(self, name: str) -> np.ndarray:
        """The named field in its shape and dtype."""
        found = self._fields.get(name)
        if found is None:
            found = self._fields[name] = self._view(name)
        return found

    def drawn(self, name: str) -> list[Any]:
        """The log-probability field's entries of the R drawn tokens, as Python's own numbers.

        Converted once, because this costs less than one number at a time for a few rows.
        """
        found = self._drawn.get(name)
        if found is None:
            found = self._drawn[name] = self.field(name)[: self.num_rows].tolist()
        return found

    def _view(self, name: str) -> np.ndarray:
        part = self._packed[self._layout.slices[name]]
        if name in FLOAT_RESULTS:
            part = part.view(np.float32)
        part = part.reshape(self._layout.fields[name])
        part.flags.writeable = False
        return part
