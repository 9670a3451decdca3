"""What the simulator asks of a workload, and the plainest one: arrivals as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from fastgen_jax.sim.arrival import Arrival


class Workload(Protocol):
    """Sends requests: some at times fixed beforehand, others because one has ended."""

    def start(self) -> Iterator[Arrival]:
        """The arrivals that wait for nobody, in order of time; begins a run anew."""
        ...

    def after(self, ended: Arrival, token_ids: Sequence[int], now: float) -> Arrival | None:
        """What its client sends next, not before ``now``; None when it has nothing more.

        ``token_ids`` are the ended request's prompt and output.
        """
        ...


class Replay:
    """Arrivals given one by one: a recorded run, or a test's own."""

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self.arrivals = tuple(sorted(arrivals, key=lambda arrival: arrival.time))

    def start(self) -> Iterator[Arrival]:
        """All of them."""
        return iter(self.arrivals)

    def after(self, ended: Arrival, token_ids: Sequence[int], now: float) -> Arrival | None:
        """Nothing."""
        return None
