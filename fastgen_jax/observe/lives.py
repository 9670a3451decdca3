"""What happened to each request, step by step, read out of the plans."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from fastgen_jax.observe.records import HistoryWindow, RequestTrace, StepRecord
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import Reason

RAN = frozenset({Reason.DECODE, Reason.CHUNK, Reason.LAST_CHUNK})


class Moment(NamedTuple):
    """A request in one plan.

    Attributes:
        position: of the step in the window.
        reason: what the plan says of it; None where the plan looked at nobody in the queue.
        num_tokens: of one step of the plan; 0 where it didn't run.
        start: position of the first of them.
        winner: id of the request that its blocks were taken for, with PREEMPTED only.
        is_behind: True where the plan didn't get as far as this request in the queue; ``reason``
            is then that of the one it stopped at.
    """

    position: int
    reason: Reason | None
    num_tokens: int = 0
    start: int = 0
    winner: str | None = None
    is_behind: bool = False

    @property
    def ran(self) -> bool:
        """True where it got tokens."""
        return self.reason in RAN


class TokenTime(NamedTuple):
    """When an output token was read, and the step it came from."""

    number: int  # from 1
    time: float
    position: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestLife:
    """One request in a window, moment by moment.

    Attributes:
        trace: the request and its ends.
        steps: of the window.
        moments: a moment for each plan that named it, and for those that passed it by in the
            queue; in order.
    """

    trace: RequestTrace
    steps: tuple[StepRecord, ...]
    moments: tuple[Moment, ...]

    @cached_property
    def runs(self) -> tuple[Moment, ...]:
        """The moments in which it ran, less those whose token came after its end."""
        return tuple(m for m in self.moments if m.ran and not self._is_dropped(m))

    @cached_property
    def token_times(self) -> tuple[TokenTime, ...]:
        """When each output token was read; those of steps that are forgotten are missing."""
        request = self.trace.request
        known = request.num_output_tokens
        times: list[TokenTime] = []
        for moment in self.runs:
            if moment.reason is Reason.CHUNK:
                continue
            number = self._first_token(moment)
            for offset, time in enumerate(self.steps[moment.position].read_times):
                if number + offset <= known:
                    times.append(TokenTime(number + offset, time, moment.position))
        return tuple(times)

    def _first_token(self, moment: Moment) -> int:
        """The number of the output token that a moment drew, of several the first."""
        return moment.start + moment.num_tokens - self.trace.request.num_prompt_tokens + 1

    def _is_dropped(self, moment: Moment) -> bool:
        if self.trace.end_time is None or moment.reason is Reason.CHUNK:
            return False
        return self._first_token(moment) > self.trace.request.num_output_tokens

    @property
    def is_whole(self) -> bool:
        """True where the window has it from its arrival on."""
        return not self.steps or self.trace.first_step >= self.steps[0].index


def lives(window: HistoryWindow, traces: Sequence[RequestTrace]) -> list[RequestLife]:
    """What the window tells of each of these requests."""
    named: dict[Request, list[Moment]] = {trace.request: [] for trace in traces}
    queue = _Queue(
        indices=[step.index for step in window.steps], barriers=_collect(window.steps, named)
    )
    return [
        RequestLife(
            trace=trace,
            steps=window.steps,
            moments=tuple(_with_queue(trace, named[trace.request], window.steps, queue)),
        )
        for trace in traces
    ]


def wait_runs(moments: Iterable[Moment]) -> Iterator[tuple[Moment, int]]:
    """Waits that follow each other for the same reason, as the first of them and their number."""
    for _, group in groupby(moments, key=lambda moment: (moment.reason, moment.is_behind)):
        members = list(group)
        yield members[0], len(members)


def _collect(
    steps: tuple[StepRecord, ...], named: dict[Request, list[Moment]]
) -> list[Reason | None]:
    """Put every plan's words into ``named``; why the queue got no further, for each plan."""
    running: set[Request] = set()
    barriers: list[Reason | None] = []
    for position, step in enumerate(steps):
        plan = step.plan
        rows = plan.rows
        columns = (rows.starts.tolist(), rows.lengths.tolist(), rows.samples.tolist())
        for request, start, count, samples in zip(rows.requests, *columns, strict=True):
            moments = named.get(request)
            if moments is not None:
                reason = _ran(request, start, count, samples)
                moments.append(Moment(position, reason, count, start))
        barrier = None
        running.update(rows.requests)
        victims = {victim for victim, _ in plan.preempted}
        for request, reason in plan.waits:
            if request not in running and reason is not Reason.IN_FLIGHT:
                barrier = reason
            moments = named.get(request)
            if moments is not None and request not in victims:
                moments.append(Moment(position, reason))
        for victim, winner in plan.preempted:
            running.discard(victim)
            moments = named.get(victim)
            if moments is not None:
                moments.append(Moment(position, Reason.PREEMPTED, winner=winner))
        barriers.append(barrier)
    return barriers


def _ran(request: Request, start: int, count: int, samples: bool) -> Reason:
    if not samples:
        return Reason.CHUNK
    is_decode = count == 1 and start >= request.num_prompt_tokens
    return Reason.DECODE if is_decode else Reason.LAST_CHUNK


class _Queue(NamedTuple):
    """Of each step, its index, and why its plan got no further in the queue."""

    indices: list[int]
    barriers: list[Reason | None]

    def passed_by(self, first: int, end: int) -> Iterator[Moment]:
        """The moments of one who stood there, further behind, at these positions."""
        return (Moment(at, self.barriers[at], is_behind=True) for at in range(first, end))


def _with_queue(
    trace: RequestTrace, named: list[Moment], steps: tuple[StepRecord, ...], queue: _Queue
) -> Iterator[Moment]:
    """The moments, and those of plans that didn't get to it in the queue; none after its end."""
    done = bisect_left(queue.indices, trace.first_step)
    end = len(steps)
    if trace.last_step is not None:
        end = bisect_right(queue.indices, trace.last_step)
    first = named[0] if named else None
    # One that a window finds running didn't wait before.
    is_queued = (
        first is None or not first.ran or trace.request in steps[first.position].plan.admitted
    )
    for moment in named:
        if moment.position >= end:
            break
        if is_queued:
            yield from queue.passed_by(done, moment.position)
        yield moment
        done = moment.position + 1
        is_queued = moment.reason is Reason.PREEMPTED or (is_queued and not moment.ran)
    if is_queued:
        yield from queue.passed_by(done, end)
