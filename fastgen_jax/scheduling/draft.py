"""A step plan while it is being made."""

from __future__ import annotations

from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import PlannedRow, PlannedRows, Reason, StepPlan
from fastgen_jax.scheduling.rules import SPLITFUSE, StepRules
from fastgen_jax.scheduling.splitfuse import next_chunk


class PlanDraft:
    """What is left of a step's budget and rows, and what has been decided so far."""

    __slots__ = (
        "admitted",
        "chain_length",
        "chunk_multiple",
        "chunks",
        "cut",
        "decodes",
        "num_decode_tokens",
        "preempted",
        "prompt_tokens_left",
        "prompts_left",
        "rows_left",
        "rules",
        "singles",
        "token_budget",
        "tokens_left",
        "waits",
    )

    def __init__(
        self,
        token_budget: int,
        max_rows: int,
        chunk_multiple: int,
        *,
        rules: StepRules = SPLITFUSE,
    ) -> None:
        self.rules = rules
        self.prompt_tokens_left = _least(token_budget, rules.prompt_tokens)
        self.prompts_left = _least(max_rows, rules.max_prompts)
        self.token_budget = token_budget
        self.tokens_left = token_budget
        self.rows_left = max_rows
        self.chunk_multiple = chunk_multiple
        self.decodes: PlannedRows | None = None
        self.chain_length = 1
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

    @property
    def prompts_full_reason(self) -> Reason | None:
        """Why no prompt can be granted anything more, or None while one can."""
        full = self.full_reason
        if full is None and not (self.prompt_tokens_left and self.prompts_left):
            return Reason.POLICY_RULES
        return full

    @property
    def is_empty(self) -> bool:
        """True while nothing was granted."""
        return self.tokens_left == self.token_budget

    def next_chunk(self, num_remaining: int) -> int:
        """Tokens for the next prompt in order; 0 when it doesn't fit beside a rounded chunk."""
        limit = self.rules.max_chunk
        if limit is not None and limit <= self._room:
            return min(num_remaining, limit)
        return next_chunk(
            num_remaining, self._room, self.chunk_multiple, after_cut=self.cut is not None
        )

    def whole_chunk(self, num_remaining: int) -> int:
        """The same, but all of the prompt or nothing unless no step could ever hold it."""
        if self._room < num_remaining <= self.token_budget:
            return 0
        return self.next_chunk(num_remaining)

    @property
    def _room(self) -> int:
        return min(self.tokens_left, self.prompt_tokens_left)

    def wait(self, request: Request, reason: Reason) -> None:
        """Record why a considered request gets nothing."""
        self.waits.append((request, reason))

    def reserve(self, *, num_tokens: int, num_rows: int) -> None:
        """Take budget and rows for what is to be granted."""
        self.tokens_left -= num_tokens
        self.rows_left -= num_rows

    def grant_prompt(self, row: PlannedRow) -> None:
        """Put a chunk of a prompt into the step, and count it as the rules do."""
        self.prompt_tokens_left -= row.num_tokens
        self.prompts_left -= 1
        self.grant(row)

    def top_up(self, num_tokens: int) -> None:
        """Count so many tokens more for the chunk that was cut."""
        self.tokens_left -= num_tokens
        self.prompt_tokens_left -= num_tokens

    @property
    def num_to_top_up(self) -> int:
        """Tokens that the chunk that was cut can still have: what rounding freed."""
        if self.cut is None:
            return 0
        limit = self.rules.max_chunk
        room = self._room
        return room if limit is None else min(room, limit - self.chunks[self.cut].num_tokens)

    def grant(self, row: PlannedRow) -> None:
        """Put a row into the step."""
        self.reserve(num_tokens=row.num_tokens, num_rows=1)
        if row.num_tokens > 1:
            self.chunks.append(row)
            if not row.samples and row.num_tokens != self.rules.max_chunk:
                self.cut = len(self.chunks) - 1
            return
        self.singles.append(row)
        if row.samples and row.start >= row.request.num_prompt_tokens:
            self.num_decode_tokens += 1

    def add_decodes(self, rows: PlannedRows) -> None:
        """Put the decodes into the step, once; their budget is reserved."""
        self.decodes = rows
        self.num_decode_tokens += len(rows)

    def build(
        self,
        *,
        step_index: int,
        time: float,
        table_changes: tuple[tuple[Request, int], ...],
        num_waiting: int,
        num_free_blocks: int,
    ) -> StepPlan:
        """The finished plan."""
        decodes = self.decodes
        others = [*self.singles, *self.chunks]
        if decodes is None or not decodes.requests:
            rows = PlannedRows.of(others)
        else:
            rows = decodes.followed_by(PlannedRows.of(others)) if others else decodes
        return StepPlan(
            step_index=step_index,
            time=time,
            rows=rows,
            chain_length=self.chain_length,
            num_settled=len(rows) - len(others),
            admitted=tuple(self.admitted),
            table_changes=table_changes,
            waits=tuple(self.waits),
            preempted=tuple(self.preempted),
            num_tokens=self.token_budget - self.tokens_left,
            num_decode_tokens=self.num_decode_tokens,
            num_waiting=num_waiting,
            num_free_blocks=num_free_blocks,
        )


def _least(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)
