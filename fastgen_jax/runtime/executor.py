"""Owner of everything on the device: weights, pages, row state and the compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fastgen_jax.batching import ResultLayout, StepResults, StepShape
from fastgen_jax.errors import EngineClosedError
from fastgen_jax.runtime.cache import Pages
from fastgen_jax.runtime.compile import CompiledProgram
from fastgen_jax.sampling import RowState

WRITE_ROW = "write_row"


class DeviceStep:
    """A launched step; the copy to the host began with it."""

    def __init__(self, packed: jax.Array, layout: ResultLayout) -> None:
        packed.copy_to_host_async()
        self._packed = packed
        self._layout = layout

    @property
    def is_ready(self) -> bool:
        """Whether reading wouldn't wait."""
        return self._packed.is_ready()  # pyright: ignore[reportAttributeAccessIssue]

    def read(self) -> StepResults:
        """The step's results; waits for the device."""
        return StepResults(np.asarray(self._packed), self._layout)


class Executor:
    """Runs compiled steps; pages and row state pass from step to step, updated in place."""

    def __init__(
        self,
        *,
        leaves: tuple[jax.Array, ...],
        pages: Pages,
        rows: RowState,
        steps: dict[StepShape, CompiledProgram],
        results: dict[StepShape, ResultLayout],
        write_row: CompiledProgram,
        place: Callable[[np.ndarray], Any] = lambda values: values,
    ) -> None:
        """``place`` makes of an input what the programs take, where devices aren't all here."""
        self._leaves = leaves
        self._pages = pages
        self._rows = rows
        self._steps = steps
        self._results = results
        self._write_row = write_row
        self._place = place
        self._is_closed = False

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """Every shape that was declared, ascending."""
        return tuple(sorted(self._results))

    @property
    def ready_shapes(self) -> tuple[StepShape, ...]:
        """The shapes that can be launched already, ascending."""
        return tuple(sorted(self._steps))

    def add_step(self, shape: StepShape, program: CompiledProgram) -> None:
        """Make another declared shape launchable; safe while another thread launches."""
        self._steps[shape] = program

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Put a request's settings and tokens into a device row, before the next launch."""
        self._check_open()
        self._rows = self._write_row(
            self._rows, self._place(np.asarray(row, np.int32)), self._place(packed)
        )

    def launch(self, shape: StepShape, packed: np.ndarray) -> DeviceStep:
        """Start a step and return at once; steps run in the order of their launches."""
        self._check_open()
        self._pages, self._rows, results = self._steps[shape](
            self._leaves, self._pages, self._rows, self._place(packed)
        )
        return DeviceStep(results, self._results[shape])

    def close(self) -> None:
        """Free every device buffer; closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        for leaf in jax.tree.leaves((self._leaves, self._pages, self._rows)):
            if not leaf.is_deleted():  # a step that failed may have consumed it
                leaf.delete()
        self._leaves, self._pages = (), ()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine was closed", remedy="build a new LLM")
