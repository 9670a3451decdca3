"""What a step will run, and why: plain data that later stages and notebooks read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Int32

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
    POLICY_RULES = "policy_rules"  # waits: the policy composed this step without it
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedRows(Sequence[PlannedRow]):
    """The rows of a step as columns; a row by itself is made when somebody looks.

    Attributes:
        requests: whose rows they are.
        device_rows: where each request's tokens and settings lie on the device.
        starts: position of each row's first token.
        lengths: tokens of each row.
        samples: whether the row draws a token.
    """

    requests: tuple[Request, ...]
    device_rows: Int32[np.ndarray, "R"]
    starts: Int32[np.ndarray, "R"]
    lengths: Int32[np.ndarray, "R"]
    samples: Bool[np.ndarray, "R"]

    @classmethod
    def of(cls, rows: Iterable[PlannedRow]) -> PlannedRows:
        """The columns of rows of running requests."""
        rows = tuple(rows)
        return cls(
            requests=tuple(row.request for row in rows),
            device_rows=np.array([row.request.row for row in rows], np.int32),
            starts=np.array([row.start for row in rows], np.int32),
            lengths=np.array([row.num_tokens for row in rows], np.int32),
            samples=np.array([row.samples for row in rows], np.bool_),
        )

    def followed_by(self, other: PlannedRows) -> PlannedRows:
        """These rows, then the other ones."""
        return PlannedRows(
            requests=self.requests + other.requests,
            device_rows=np.concatenate([self.device_rows, other.device_rows]),
            starts=np.concatenate([self.starts, other.starts]),
            lengths=np.concatenate([self.lengths, other.lengths]),
            samples=np.concatenate([self.samples, other.samples]),
        )

    def __len__(self) -> int:
        """Rows in the step."""
        return len(self.requests)

    @overload
    def __getitem__(self, index: int) -> PlannedRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PlannedRow, ...]: ...
    def __getitem__(self, index: int | slice) -> PlannedRow | tuple[PlannedRow, ...]:
        """One row, or several."""
        if isinstance(index, slice):
            return tuple(self)[index]
        return PlannedRow(
            self.requests[index],
            int(self.starts[index]),
            int(self.lengths[index]),
            bool(self.samples[index]),
        )

    def __iter__(self) -> Iterator[PlannedRow]:
        """The rows in order."""
        columns = (self.starts.tolist(), self.lengths.tolist(), self.samples.tolist())
        return map(PlannedRow, self.requests, *columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepPlan:
    """One launch: its rows (single tokens first, then chunks), admissions and every decision.

    Nearly always a launch is one step. A chain is several, of the same decodes: the rows say where
    the first begins, and each one after it is a token further.

    Attributes:
        step_index: counts plans from 0.
        time: when it was made, in seconds on the scheduler's clock: all that a policy saw of it.
        rows: what runs; rows with one token come before rows with several.
        chain_length: steps that the launch runs.
        num_settled: how many rows, from the first, belong to requests that decoded before.
        admitted: requests that took a device row in this plan; their row state must be written
            before the step runs.
        table_changes: (request, position) of those whose blocks changed from that position on
            since the plan before; an admitted one's from 0.
        waits: (request, reason) of those considered but not run; PREEMPTED ones are in
            ``preempted``.
        preempted: (victim, id of the request it made room for).
        num_tokens: sum of the rows' tokens, in one step; never above the budget.
        num_decode_tokens: how many of them are decodes.
        num_waiting: requests queued after this plan.
        num_free_blocks: blocks free or only cached after this plan.
    """

    step_index: int
    time: float
    rows: PlannedRows
    chain_length: int
    num_settled: int
    admitted: tuple[Request, ...]
    table_changes: tuple[tuple[Request, int], ...]
    waits: tuple[tuple[Request, Reason], ...]
    preempted: tuple[tuple[Request, str], ...]
    num_tokens: int
    num_decode_tokens: int
    num_waiting: int
    num_free_blocks: int

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to run."""
        return not self.rows.requests

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """A decision for every request considered, built only when someone looks.

        With the tokens of one step; ``chain_length`` says how often they ran.
        """
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
