"""Which implementation of the product serves on a device, and why another can't."""

from __future__ import annotations

from pallas_kernels.linear.config import LinearConfig, LinearNative, LinearReference
from pallas_kernels.target import Implementation, Target, choose, no_native_kernels

_OF_GPUS: tuple[Implementation, ...] = ("mosaic_gpu", "triton")


def select_linear_config(
    target: Target, *, implementation: Implementation | None = None, rounds_rows: bool = False
) -> LinearConfig:
    """The configuration for a device; its class says which implementation it is.

    None takes the native kernel on a CPU where it was built, and XLA elsewhere. The names of GPU
    kernels take XLA too, because none of them multiplies weights. ``rounds_rows`` goes into it.

    Raises:
        ValueError: the name is unknown, or the native kernel was asked for and can't serve; the
            message says why.
    """

    def obstacle(name: Implementation) -> str | None:
        return "multiplies no weights" if name in _OF_GPUS else no_native_kernels(target)

    chosen = choose("xla" if implementation in _OF_GPUS else implementation, obstacle)
    if chosen == "native":
        return LinearNative(rounds_rows=rounds_rows)
    return LinearReference(rounds_rows=rounds_rows)
