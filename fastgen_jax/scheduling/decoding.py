"""The requests that decode, counted in columns: a step costs what changes, not what runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from jaxtyping import Int32

from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import PlannedRows


class DecodingRows:
    """Running requests whose next token is all there is to compute, in order of their joining.

    A decode advances a counter and changes nothing else, unless its token begins a block, fills
    one, or is the last. So the counters are columns indexed by device row that advance together,
    and only those few requests are looked at one by one.
    """

    __slots__ = ("_ends", "_everybody", "_members", "_num_computed", "_tables")

    def __init__(self, max_num_seqs: int, tables: BlockTables) -> None:
        self._tables = tables
        self._members: dict[Request, None] = {}
        self._everybody: PlannedRows | None = None
        self._num_computed = np.zeros(max_num_seqs, np.int32)
        # The number of tokens at which nothing is left to plan.
        self._ends = np.zeros(max_num_seqs, np.int32)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request: Request) -> bool:
        return request in self._members

    def __iter__(self) -> Iterator[Request]:
        return iter(self._members)

    def add(self, request: Request, end: int) -> None:
        """Count for a running request; at ``end`` tokens nothing is left to plan."""
        self._members[request] = None
        self._everybody = None
        self._ends[request.row] = end
        request.count_in(self._num_computed)

    def remove(self, request: Request) -> None:
        """Give a request its counts back."""
        del self._members[request]
        self._everybody = None
        request.count_alone()

    @property
    def num_growing(self) -> int:
        """How many will need another block before they end."""
        rows = self._group().device_rows
        held = self._blocks(self._num_computed[rows]) * self._tables.block_size
        return int(np.count_nonzero(held < self._ends[rows] - 1))  # the last is never computed

    def num_new_blocks(self, num_steps: int = 1) -> int:
        """Blocks that the next tokens of each take from the pool."""
        starts = self._num_computed[self._group().device_rows]
        return int((self._blocks(starts + num_steps) - self._blocks(starts)).sum())

    def longest_chain(self, limit: int) -> int:
        """Steps, up to the limit, that take nobody beyond its end and the pool has blocks for.

        At least 1; at the limit when nobody decodes.
        """
        if limit == 1:
            return 1
        rows = self._group().device_rows
        left = self._ends[rows] - self._num_computed[rows] - 1
        length = int(left.min(initial=limit))
        while length > 1 and self.num_new_blocks(length) > self._tables.pool.num_free:
            length -= 1
        return length

    def needs_block(self, request: Request) -> bool:
        """True when the request's next token begins a block."""
        return not request.num_computed_tokens % self._tables.block_size

    def advance(
        self, granted: Collection[Request] | None = None, *, num_steps: int = 1
    ) -> tuple[PlannedRows, list[Request]]:
        """Rows of one token for those granted, or for all, and those that have no more to plan.

        They run in ``num_steps`` steps, each a token further than the one before. The pool must
        have the blocks that they need. Those at their end are still members.
        """
        group = self._group() if granted is None else _rows_of(granted)
        rows, size = group.device_rows, self._tables.block_size
        starts = self._num_computed[rows]
        stops = starts + num_steps
        self._num_computed[rows] = stops
        num_new = self._blocks(stops) - self._blocks(starts)
        for index in num_new.nonzero()[0].tolist():
            self._tables.append(group.requests[index], int(num_new[index]))
        for index in (stops // size > starts // size).nonzero()[0].tolist():
            self._tables.commit(group.requests[index])
        ended = (stops + 1 == self._ends[rows]).nonzero()[0].tolist()
        planned = PlannedRows(
            requests=group.requests,
            device_rows=rows,
            starts=starts,
            lengths=group.lengths,
            samples=group.samples,
        )
        return planned, [group.requests[index] for index in ended]

    def _blocks(self, num_tokens: Int32[np.ndarray, "R"]) -> Int32[np.ndarray, "R"]:
        size = self._tables.block_size
        return (num_tokens + (size - 1)) // size

    def _group(self) -> PlannedRows:
        """Everybody's row, but for its start; kept till somebody joins or leaves."""
        if self._everybody is None:
            self._everybody = _rows_of(self._members)
        return self._everybody


def _rows_of(requests: Collection[Request]) -> PlannedRows:
    count = len(requests)
    return PlannedRows(
        requests=tuple(requests),
        device_rows=np.fromiter((request.row for request in requests), np.int32, count),
        starts=np.zeros(count, np.int32),
        lengths=np.ones(count, np.int32),
        samples=np.ones(count, np.bool_),
    )
