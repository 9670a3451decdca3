"""A simulated GPU for Mosaic GPU kernels that turns every race into an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax.experimental.pallas import mosaic_gpu as plgpu

# What the interpreter says of two accesses without an order, and of a thread block that ends while
# its copies still read its shared memory.
_FOUND = ("RACE DETECTED", "before kernel finished")


class RaceError(AssertionError):
    """Two uses of one place that nothing orders."""


@contextmanager
def interpreted_gpu() -> Iterator[None]:
    """Kernels traced inside run on a simulated GPU.

    Raises:
        RaceError: the kernels raced.
    """
    params = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
    try:
        with plgpu.force_gpu_interpret_mode(params):
            yield
    except Exception as error:
        if any(words in str(error) for words in _FOUND):
            raise RaceError(str(error)) from error
        raise
    races = interpret_pallas_call.get_races()
    if races is not None and races.races_found:
        raise RaceError("the race detector found a race")


def reset() -> None:
    """Forgets what the interpreter knows, which it needs after every error."""
    interpret_pallas_call.reset_gpu_interpret_mode_state()
