"""A request's life cut at its preemptions: each stay is a wait, chunks, then decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastgen_jax.observe.lives import Moment, RequestLife
from fastgen_jax.scheduling.plan import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """From one arrival in the queue to the next loss of blocks, or to the end.

    Attributes:
        waits: plans that passed it by before it first ran.
        chunks: when it computed what it already knew: its prompt, or all it had lost.
        pauses: plans that passed it by after it first ran.
        decodes: when it decoded.
        preempted: the moment that ended it; None for the last stay.
        num_computed: tokens in the cache at its end, those of chained steps included.
    """

    waits: tuple[Moment, ...]
    chunks: tuple[Moment, ...]
    pauses: tuple[Moment, ...]
    decodes: tuple[Moment, ...]
    preempted: Moment | None
    num_computed: int

    @property
    def first_run(self) -> Moment | None:
        """When it first ran."""
        runs = (*self.chunks[:1], *self.decodes[:1])
        return min(runs, key=lambda run: run.position, default=None)

    @property
    def num_cached(self) -> int:
        """Tokens that it found in the cache: those before its chunks, and between them."""
        if not self.chunks:
            return 0
        last = self.chunks[-1]
        return last.start + last.num_tokens - sum(chunk.num_tokens for chunk in self.chunks)


def stays(life: RequestLife) -> list[Stay]:
    """The stays in order; one at least."""
    return [_stay(life, part) for part in _parts(life.moments)]


def _parts(moments: tuple[Moment, ...]) -> Iterator[tuple[Moment, ...]]:
    start = 0
    for end, moment in enumerate(moments, start=1):
        if moment.reason is Reason.PREEMPTED:
            yield moments[start:end]
            start = end
    yield moments[start:]


def _stay(life: RequestLife, moments: tuple[Moment, ...]) -> Stay:
    ended = moments[-1] if moments and moments[-1].reason is Reason.PREEMPTED else None
    counted = set(life.runs)
    runs = [moment for moment in moments if moment in counted]
    first = runs[0].position if runs else len(life.steps)
    held_up = [m for m in moments if not m.ran and m.reason is not Reason.PREEMPTED]
    return Stay(
        waits=tuple(m for m in held_up if m.position < first),
        chunks=tuple(run for run in runs if run.reason is not Reason.DECODE),
        pauses=tuple(m for m in held_up if m.position > first and m.reason is not Reason.IN_FLIGHT),
        decodes=tuple(run for run in runs if run.reason is Reason.DECODE),
        preempted=ended,
        num_computed=max((_stop(life, run) for run in runs), default=0),
    )


def _stop(life: RequestLife, run: Moment) -> int:
    """The position at which the next run goes on."""
    return run.start + run.num_tokens + life.steps[run.position].plan.chain_length - 1
