"""The mathematics of one layer's attention, apart from its arrays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """What is done to the scores; None leaves a part out.

    Attributes:
        scale: factor of the products of queries and keys.
        window: keys that a query sees, its own included.
        softcap: scores s become ``softcap * tanh(s / softcap)`` before they are masked.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Refuse a window or a softcap that would hide every key."""
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: must be at least 1, or None for all keys")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap={self.softcap}: must be above 0, or None for none")
