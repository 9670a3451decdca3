"""A step plan while it is being made."""

from __future__ import annotations

from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import PlannedRow, Reason, StepPlan
from fastgen_jax.scheduling.splitfuse import next_chunk


class PlanDraft:
    """What is left of a step's budget and rows, and what has been decided so far."""

    __slots__ = (
        "admitted",
        "chunk_multiple",
        "chunks",
        "cut",
        "num_decode_tokens",
        "preempted",
        "rows_left",
        "singles",
        "token_budget",
        "tokens_left",
        "waits",
    )

    def __init__(self, token_budget: int, max_rows: int, chunk_multiple: int) -> None:
        self.token_budget = token_budget
        self.tokens_left = token_budget
        self.rows_left = max_rows
        self.chunk_multiple = chunk_multiple
        self.singles: list[PlannedRow] = []
        self.chunks: list[PlannedRow] = []
        self.cut: int | None = None  # index in chunks of the one that the budget cut
        self.num_decode_tokens = 0
        self.admitted: list[Request] = []
        self.waits: list[tuple[Request, Reason]] = []
        self.preempted: list[tuple[Request, str]] = []

    @property
    def full_reason(self) -> Reason | None:
        """Why nothing more can be granted, or None while something can."""
        if not self.tokens_left:
            return Reason.NO_BUDGET
        return None if self.rows_left else Reason.NO_ROW

    def next_chunk(self, num_remaining: int) -> int:
        """Tokens for the next prompt in order; 0 when it doesn't fit beside a rounded chunk."""
        return next_chunk(
            num_remaining, self.tokens_left, self.chunk_multiple, after_cut=self.cut is not None
        )

    def wait(self, request: Request, reason: Reason) -> None:
        """Record why a considered request gets nothing."""
        self.waits.append((request, reason))

    def grant(self, row: PlannedRow) -> None:
        """Put a row into the step."""
        self.tokens_left -= row.num_tokens
        self.rows_left -= 1
        if row.num_tokens > 1:
            self.chunks.append(row)
            if not row.samples:
                self.cut = len(self.chunks) - 1
            return
        self.singles.append(row)
        if row.samples and row.start >= row.request.num_prompt_tokens:
            self.num_decode_tokens += 1

    def grant_decodes(self, rows: list[PlannedRow]) -> None:
        """Put many decode rows into the step at once."""
        self.tokens_left -= len(rows)
        self.rows_left -= len(rows)
        self.num_decode_tokens += len(rows)
        self.singles += rows

    def build(self, *, step_index: int, num_waiting: int, num_free_blocks: int) -> StepPlan:
        """The finished plan."""
        return StepPlan(
            step_index=step_index,
            rows=(*self.singles, *self.chunks),
            admitted=tuple(self.admitted),
            waits=tuple(self.waits),
            preempted=tuple(self.preempted),
            num_tokens=self.token_budget - self.tokens_left,
            num_decode_tokens=self.num_decode_tokens,
            num_waiting=num_waiting,
            num_free_blocks=num_free_blocks,
        )
