"""The devices that kernels are chosen for, and the implementations there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Implementation = Literal["mosaic_gpu", "triton", "xla"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("mosaic_gpu", "triton", "xla")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device that a kernel is chosen for.

    Attributes:
        platform: "cpu" or "gpu" (CUDA).
        compute_capability: major and minor; (0, 0) on a CPU.
        num_sms: multiprocessors; 0 on a CPU.
        shared_memory: bytes that one thread block may take; 0 on a CPU.
        kind: the device's name, under which tuned sizes are filed.
    """

    platform: str
    compute_capability: tuple[int, int] = (0, 0)
    num_sms: int = 0
    shared_memory: int = 0
    kind: str = ""


CPU = Target(platform="cpu")
H100 = Target(
    platform="gpu",
    compute_capability=(9, 0),
    num_sms=132,
    shared_memory=232448,
    kind="NVIDIA H100 80GB HBM3",
)
A100 = Target(
    platform="gpu",
    compute_capability=(8, 0),
    num_sms=108,
    shared_memory=166912,
    kind="NVIDIA A100-SXM4-80GB",
)


def target_of(device: Any) -> Target:
    """The target that a jax device is, compile-only ones included."""
    if device.platform == "cpu":
        return CPU
    if device.platform not in ("gpu", "cuda"):
        return Target(platform=device.platform)
    major, minor = (int(part) for part in str(device.compute_capability).split("."))
    return Target(
        platform="gpu",
        compute_capability=(major, minor),
        num_sms=device.core_count,
        shared_memory=_SHARED_MEMORY.get((major, minor), _LEAST_SHARED_MEMORY),
        kind=device.device_kind,
    )


# Bytes that one thread block may take, by compute capability (CUDA C Programming Guide, table of
# technical specifications).
_SHARED_MEMORY = {(8, 0): 166912, (8, 7): 166912, (9, 0): 232448, (10, 0): 232448}
_LEAST_SHARED_MEMORY = 101376  # of 8.6, 8.9 and 12.0
