"""The requests that hold neither row nor blocks, in the policy's order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from fastgen_jax.request import Request
from fastgen_jax.scheduling.policy_guard import PolicyGuard

type _Entry = tuple[float, int, Request]  # arrival_index is unique: requests are never compared


class WaitingQueue:
    """A queue kept sorted by rank and arrival, so that looking at its front costs nothing.

    The order of a policy without ranks is kept as well, till the queue changes or room is made.
    """

    __slots__ = ("_entries", "_entry_of", "_guard", "_ordered")

    def __init__(self, guard: PolicyGuard) -> None:
        self._guard = guard
        self._entries: list[_Entry] = []
        self._entry_of: dict[Request, _Entry] = {}
        self._ordered: list[Request] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: Request) -> bool:
        return request in self._entry_of

    def add(self, request: Request) -> None:
        """Queue a request at its place."""
        entry = (self._guard.rank(request), request.arrival_index, request)
        self._entry_of[request] = entry
        insort(self._entries, entry)
        self._ordered = None

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        entry = self._entry_of.pop(request)
        del self._entries[bisect_left(self._entries, entry)]
        self._ordered = None

    def forget_order(self) -> None:
        """Ask a policy without ranks again, because somebody may be admitted now."""
        self._ordered = None

    def first(self) -> Request:
        """The front of a queue that isn't empty, by rank and arrival."""
        return self._entries[0][2]

    def demand(self, limit: int) -> int:
        """Tokens that the queue's front would compute, counted until they reach the limit."""
        total = 0
        for _, _, request in self._entries:
            if total >= limit:
                break
            total += request.num_tokens
        return total

    def in_order(self) -> Iterator[Request]:
        """Every request, most urgent first; don't add or remove while iterating."""
        if self._guard.is_ranked:
            return (entry[2] for entry in self._entries)
        if self._ordered is None:
            self._ordered = self._guard.order([entry[2] for entry in self._entries])
        return iter(self._ordered)
