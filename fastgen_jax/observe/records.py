"""What a history holds: steps with their times, and the requests that lived in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fastgen_jax.batching import StepShape
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan


class StepTrace:
    """A plan while its results are still to come; ``shape`` stays None in a simulation."""

    __slots__ = ("plan", "read_times", "shape")

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.shape: StepShape | None = None
        self.read_times: list[float] = []


class RequestTrace:
    """A request and its ends in the history.

    Attributes:
        request: the live object; its counters may move on.
        first_step: index of the first plan that could run it.
        last_step: index of the last plan made before it ended; None while it lives.
        end_time: when it ended, on the engine's clock; None while it lives.
    """

    __slots__ = ("end_time", "first_step", "last_step", "request")

    def __init__(self, request: Request, first_step: int) -> None:
        self.request = request
        self.first_step = first_step
        self.last_step: int | None = None
        self.end_time: float | None = None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRecord:
    """A launch with its times, all on the engine's clock.

    Attributes:
        plan: what ran, and why.
        shape: the compiled shape it ran in; the plan's own size in a simulation.
        start: when the launch before had been read, or when this one was planned if that is later.
        read_times: when the results of each chained step were read; fewer, or none, when they are
            still to come.
    """

    plan: StepPlan
    shape: StepShape
    start: float
    read_times: tuple[float, ...]

    @property
    def index(self) -> int:
        """The plan's number."""
        return self.plan.step_index

    @property
    def end(self) -> float:
        """When its last result was read; NaN while it is in flight, ``start`` if nothing ran."""
        if self.plan.is_empty:
            return self.start
        is_read = len(self.read_times) >= self.plan.chain_length
        return self.read_times[-1] if is_read else math.nan

    @property
    def seconds(self) -> float:
        """From start to end, what the host needs in between included; NaN while in flight."""
        return self.end - self.start

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of prompts, or computed again after a preemption, in one step."""
        return self.plan.num_tokens - self.plan.num_decode_tokens

    @property
    def num_padding_tokens(self) -> int:
        """Places of the shape without a token, in one step."""
        return self.shape.num_tokens - self.plan.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HistoryWindow:
    """Consecutive steps and every request known at the moment of asking.

    Attributes:
        steps: in order; those that ran nothing are here only if someone waited or was preempted.
        requests: in order of submission.
        is_cut: True where steps before the first one are forgotten or were left out.
    """

    steps: tuple[StepRecord, ...]
    requests: tuple[RequestTrace, ...]
    is_cut: bool

    @property
    def present(self) -> list[RequestTrace]:
        """The requests that lived while one of the steps was planned."""
        if not self.steps:
            return []
        first, last = self.steps[0].index, self.steps[-1].index
        return [
            trace
            for trace in self.requests
            if trace.first_step <= last and (trace.last_step is None or trace.last_step >= first)
        ]


def timed(traces: Iterable[StepTrace], before: float) -> list[StepRecord]:
    """Records of traces in order; ``before`` is when the launch before the first was read."""
    records: list[StepRecord] = []
    for trace in traces:
        plan = trace.plan
        shape = trace.shape or StepShape(plan.num_tokens, len(plan.rows))
        times = tuple(trace.read_times)
        record = StepRecord(plan=plan, shape=shape, start=max(plan.time, before), read_times=times)
        if times:
            before = times[-1]
        records.append(record)
    return records
