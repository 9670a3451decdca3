"""Which implementation of the product serves on a device, and why another can't."""

from __future__ import annotations

from pallas_kernels.linear.config import LinearConfig, LinearNative, LinearReference
from pallas_kernels.native import native_obstacle
from pallas_kernels.target import IMPLEMENTATIONS, Target


def select_linear_config(target: Target, *, implementation: str | None = None) -> LinearConfig:
    """The configuration for a device; its class says which implementation it is.

    None takes the native kernel on a CPU where it was built, and XLA elsewhere. The names of GPU
    kernels take XLA too, because none of them multiplies weights.

    Raises:
        ValueError: the name is unknown, or the native kernel was asked for and can't serve; the
            message says why.
    """
    if implementation not in (None, "native", *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r} is unknown: use None or one of "
            + ", ".join(repr(name) for name in IMPLEMENTATIONS)
        )
    if implementation not in (None, "native"):
        return LinearReference()
    reason = _obstacle(target)
    if reason is None:
        return LinearNative()
    if implementation is None:
        return LinearReference()
    raise ValueError(
        f'implementation="native": {reason}; use implementation=None for the best that serves it'
    )


def _obstacle(target: Target) -> str | None:
    """Why the native kernel can't serve on the device; None where it can."""
    if target.platform != "cpu":
        return f"runs on CPUs, this is {target.platform!r}"
    return native_obstacle()
