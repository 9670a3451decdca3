"""Dynamic SplitFuse in order of arrival or of priority."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen_jax.scheduling.views import RequestView


class Fcfs:
    """First come, first served; the newest gives way."""

    def rank(self, request: RequestView) -> float:
        """The same for all: arrival decides."""
        return 0.0

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By arrival."""
        return sorted(candidates, key=_arrival)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The newest."""
        return max(running, key=_arrival)


class Priority:
    """Lower priority values first, then by arrival; the lowest ranked, newest gives way."""

    def rank(self, request: RequestView) -> float:
        """The priority."""
        return request.priority

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By priority, then by arrival."""
        return sorted(candidates, key=_priority_and_arrival)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The newest of those with the highest priority value."""
        return max(running, key=_priority_and_arrival)


def _arrival(request: RequestView) -> int:
    return request.arrival_index


def _priority_and_arrival(request: RequestView) -> tuple[int, int]:
    return request.priority, request.arrival_index
