"""What a step will run, and why: plain data that later stages and notebooks read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from fastgen_jax.request import Request


class Reason(Enum):
    """Why a considered request got the tokens it got in a step."""

    DECODE = "decode"  # runs: its one next token
    CHUNK = "chunk"  # runs: a slice of its prompt, more to come
    LAST_CHUNK = "last_chunk"  # runs: the rest of its prompt, so it samples
    PREEMPTED = "preempted"  # lost its blocks; will recompute
    NO_BUDGET = "no_budget"  # waits: the step's tokens are all given out
    NO_ROW = "no_row"  # waits: every row of the step or of the device is taken
    NO_BLOCKS = "no_blocks"  # waits: the pool can't hold it beside the running decodes' reserve
    POLICY_ORDER = "policy_order"  # waits: an earlier one waited too long for blocks to be passed
    IN_FLIGHT = "in_flight"  # its last token is in flight: nothing left to schedule


class Decision(NamedTuple):
    """One request's share of one step.

    ``preempted_for`` is the id of the request whose need took its blocks, with PREEMPTED only.
    """

    request_id: str
    num_tokens: int
    reason: Reason
    preempted_for: str | None = None


class PlannedRow(NamedTuple):
    """One request's chunk in a step: positions [start, start + num_tokens) of its tokens."""

    request: Request
    start: int
    num_tokens: int
    samples: bool  # the chunk ends at the last known or in-flight token, so a token is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step: its rows (single tokens first, then chunks), admissions and every decision.

    Attributes:
        step_index: counts plans from 0.
        rows: what runs; rows with one token come before rows with several.
        admitted: requests that took a device row in this plan; their row state must be written
            before the step runs.
        waits: (request, reason) of those considered but not run; PREEMPTED ones are in
            ``preempted``.
        preempted: (victim, id of the request it made room for).
        num_tokens: sum of the rows' tokens; never above the budget.
        num_decode_tokens: how many of them are decodes.
        num_waiting: requests queued after this plan.
        num_free_blocks: blocks free or only cached after this plan.
    """

    step_index: int
    rows: tuple[PlannedRow, ...]
    admitted: tuple[Request, ...]
    waits: tuple[tuple[Request, Reason], ...]
    preempted: tuple[tuple[Request, str], ...]
    num_tokens: int
    num_decode_tokens: int
    num_waiting: int
    num_free_blocks: int

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to run."""
        return not self.rows

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """A decision for every request considered, built only when someone looks."""
        ran = (Decision(r.request.request_id, r.num_tokens, _run_reason(r)) for r in self.rows)
        waited = (Decision(request.request_id, 0, reason) for request, reason in self.waits)
        preempted = (
            Decision(victim.request_id, 0, Reason.PREEMPTED, winner)
            for victim, winner in self.preempted
        )
        return (*ran, *waited, *preempted)


def _run_reason(row: PlannedRow) -> Reason:
    if not row.samples:
        return Reason.CHUNK
    is_decode = row.num_tokens == 1 and row.start >= row.request.num_prompt_tokens
    return Reason.DECODE if is_decode else Reason.LAST_CHUNK
