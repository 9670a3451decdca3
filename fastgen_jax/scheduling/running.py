"""The requests that hold a device row and blocks, and what a grant does to them."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush

from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.request import Request, RequestState
from fastgen_jax.scheduling.decoding import DecodingRows
from fastgen_jax.scheduling.plan import PlannedRow, PlannedRows


class RunningSet:
    """Running requests in three stages; every one is in exactly one of them.

    Attributes:
        prefilling: those with known tokens left to compute, and the number of tokens at which
            nothing is left to plan for them.
        decoding: those whose next token is all there is to compute.
        draining: those whose last token is in flight; they hold row and blocks till it is read.
    """

    __slots__ = ("_free_rows", "_tables", "decoding", "draining", "prefilling")

    def __init__(self, max_num_seqs: int, tables: BlockTables) -> None:
        self.prefilling: dict[Request, int] = {}
        self.decoding = DecodingRows(max_num_seqs, tables)
        self.draining: dict[Request, None] = {}
        self._tables = tables
        self._free_rows = list(range(max_num_seqs))
        heapify(self._free_rows)

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding) + len(self.draining)

    def __contains__(self, request: Request) -> bool:
        return request in self.decoding or request in self.prefilling or request in self.draining

    @property
    def has_free_row(self) -> bool:
        """True when another request can be admitted as far as device rows go."""
        return bool(self._free_rows)

    @property
    def num_growing(self) -> int:
        """Requests that will need another block before they end: the decode reserve."""
        size = self._tables.block_size
        num_prefilling = sum(
            len(request.block_ids) * size < end - 1  # the last token is never computed
            for request, end in self.prefilling.items()
        )
        return num_prefilling + self.decoding.num_growing

    def admit(self, request: Request, cached: list[int]) -> None:
        """Give a waiting request the lowest free row and blocks for all its known tokens."""
        self._tables.open(request, cached)
        request.row = heappop(self._free_rows)
        request.state = RequestState.RUNNING
        request.num_skips = 0
        self.prefilling[request] = request.num_prompt_tokens + request.max_output_tokens

    def vacate(self, request: Request) -> None:
        """Take row and blocks from a running request; the caller sets its next state."""
        if request in self.decoding:
            self.decoding.remove(request)
        elif request in self.prefilling:
            del self.prefilling[request]
        else:
            del self.draining[request]
        self._tables.close(request)
        heappush(self._free_rows, request.row)
        request.row = -1

    def release_drained_blocks(self, granted: set[Request]) -> None:
        """Free the blocks that no later step reads: of draining requests, but for ``granted``.

        Those were granted their last token in the plan being made, whose other rows must not
        write the same blocks.
        """
        for request in self.draining:
            if request not in granted:
                self._tables.close(request)

    def grant_chunk(self, request: Request, num_tokens: int) -> PlannedRow:
        """The row for the next ``num_tokens`` known tokens of a prefilling request."""
        start = request.num_computed_tokens
        stop = start + num_tokens
        samples = stop == request.num_tokens
        request.num_computed_tokens = stop
        if samples:
            request.num_tokens += 1
            end = self.prefilling.pop(request)
            if request.num_tokens < end:
                self.decoding.add(request, end)
            else:
                self.draining[request] = None
        self._tables.commit(request)
        return PlannedRow(request, start, num_tokens, samples)

    def extend_chunk(self, row: PlannedRow, num_tokens: int) -> PlannedRow:
        """The row with ``num_tokens`` more, for a chunk that still doesn't end its prompt."""
        row.request.num_computed_tokens += num_tokens
        self._tables.commit(row.request)
        return row._replace(num_tokens=row.num_tokens + num_tokens)

    def can_grant_all_decodes(self) -> bool:
        """True when the pool has a block for every decode that starts one."""
        num_free = self._tables.pool.num_free
        return num_free >= len(self.decoding) or num_free >= self.decoding.num_new_blocks()

    def grant_decodes(
        self, granted: Collection[Request] | None = None, *, num_steps: int = 1
    ) -> PlannedRows:
        """A row of one token for each of these decoding requests, or for all; blocks suffice.

        The row runs in so many steps, each a token further.
        """
        rows, ended = self.decoding.advance(granted, num_steps=num_steps)
        for request in ended:
            self.decoding.remove(request)
            self.draining[request] = None
        return rows
