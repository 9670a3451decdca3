"""Time that passes only when somebody says so."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the simulation began; calling it gives them."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance_to(self, time: float) -> None:
        """Let time pass; never backwards."""
        self.now = max(self.now, time)
