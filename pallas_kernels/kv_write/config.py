"""How a write is cut to a shape; the class of a configuration names its implementation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteReference:
    """How the XLA form scatters.

    Attributes:
        drop_padding: tokens of page 0 are left out and XLA is told that no slot is named twice.
            Otherwise it writes every number with an atomic compare-and-swap on a GPU. For callers
            that add nothing to the page ids, so that page 0 is where all padding goes.
    """

    drop_padding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteMosaic:
    """Sizes of the Mosaic GPU kernel for compute capability 9.0.

    Attributes:
        block_tokens: tokens of a thread block, a multiple of 16.
        block_heads: heads of a thread block; divides K.
    """

    block_tokens: int = 16
    block_heads: int = 1

    def __post_init__(self) -> None:
        """Refuse a tile that a warpgroup's 128 threads can't share out evenly."""
        if self.block_tokens < 1 or self.block_tokens % 16:
            raise ValueError(f"block_tokens={self.block_tokens}: must be a multiple of 16")
        if self.block_heads < 1:
            raise ValueError(f"block_heads={self.block_heads}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteTriton:
    """Sizes of the Pallas-Triton kernel, whose programs have one head each.

    Attributes:
        block_tokens: tokens of a program, a power of two.
        num_warps: warps of a program.
    """

    block_tokens: int = 16
    num_warps: int = 4

    def __post_init__(self) -> None:
        """Refuse what Triton has no tiles for."""
        for name in ("block_tokens", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}={value}: must be a power of two")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteNative:
    """The CPU's own kernel, which has no sizes to choose."""


KvWriteConfig = KvWriteReference | KvWriteMosaic | KvWriteTriton | KvWriteNative
