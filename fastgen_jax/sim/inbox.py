"""Arrivals that haven't come yet, from a workload and from the ends of requests."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.workload import Workload


class Inbox:
    """Merges a workload's own arrivals with those that follow an end, in order of time."""

    __slots__ = ("_count", "_own", "_pending", "_workload")

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._own = workload.start()
        self._pending: list[tuple[float, int, Arrival]] = []
        self._count = 0
        self._pull()

    @property
    def next_time(self) -> float | None:
        """When the next one comes; None when nobody does."""
        return self._pending[0][0] if self._pending else None

    def take(self, now: float) -> list[Arrival]:
        """Those that have come by now."""
        come: list[Arrival] = []
        while self._pending and self._pending[0][0] <= now:
            _, number, arrival = heappop(self._pending)
            come.append(arrival)
            if number >= 0:
                self._pull()
        return come

    def ended(self, arrival: Arrival, token_ids: Sequence[int], now: float) -> None:
        """Ask the workload what follows."""
        following = self._workload.after(arrival, token_ids, now)
        if following is not None:
            self._count += 1
            # Negative, and so before the workload's own arrivals of the same time.
            heappush(self._pending, (following.time, self._count - 2**62, following))

    def _pull(self) -> None:
        """Keep the next of the workload's own arrivals at hand; it knows no end of a list."""
        arrival = next(self._own, None)
        if arrival is not None:
            self._count += 1
            heappush(self._pending, (arrival.time, self._count, arrival))
