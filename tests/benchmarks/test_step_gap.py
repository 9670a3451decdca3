from __future__ import annotations

import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest

from benchmarks.execution_trace import (
    BEGIN,
    END,
    Execution,
    TraceEvent,
    executions,
    gaps,
    recorded_trace,
)
from benchmarks.step_gap import gap_numbers


def event(line: int, name: str, start: float, end: float) -> TraceEvent:
    return TraceEvent(f"tf_XLAExecute/{line}", name, start, end)


def mark(line: int, name: str, at: float) -> TraceEvent:
    return event(line, name, at, at)


def test_a_program_lasts_from_its_first_event_to_its_last():
    events = [
        event(1, "cut off at the beginning", 10, 20),
        mark(1, END, 21),
        mark(1, BEGIN, 95),
        event(1, "execute", 100, 110),
        event(1, "a part of it", 101, 109),
        event(1, "wait", 111, 200),
        mark(1, "ThreadpoolListener::Record", 205),
        mark(1, END, 206),
        mark(2, BEGIN, 225),
        event(2, "execute", 230, 260),
        mark(2, BEGIN, 261),
        event(2, "nested", 262, 300),
        mark(2, END, 301),
        mark(2, END, 302),
        mark(1, BEGIN, 303),  # nothing to compute
        mark(1, END, 304),
        mark(1, BEGIN, 305),
        event(1, "cut off at the end", 310, 320),
    ]
    spans = executions(events[::-1])
    assert spans == [Execution(100, 200), Execution(230, 300)]
    assert gaps(spans) == [30]


def test_overlapping_programs_leave_no_gap():
    assert gaps([Execution(0, 10), Execution(8, 12), Execution(15, 20)]) == [0, 3]


def test_no_events_are_no_programs():
    assert executions([]) == []
    assert gaps([]) == []


def test_shares_of_gaps():
    numbers = gap_numbers(
        untraced=[2.0, 2.0, 4.0], busy=[3.0, 3.0], idle=[0.1, 0.2, 0.3], steps_per_launch=4.0
    )
    assert numbers["gap_share"] == pytest.approx(0.1)
    assert numbers["gap_share_of_step"] == pytest.approx(0.4)
    assert numbers["gap_share_of_traced_time"] == pytest.approx(0.6 / 6.6)
    assert numbers["gap_seconds"]["high"] == 0.3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the trace of XLA's CPU runtime")
def test_a_trace_shows_programs_one_after_the_other():
    x = jnp.full((600, 600), 1 / 600)
    run = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
    with recorded_trace() as trace:
        start = time.perf_counter()
        for _ in range(8):
            x = run(x)
        x.block_until_ready()
        seconds = time.perf_counter() - start
    spans = executions(trace.events)
    # One that finds the device idle may run on the thread that launched it.
    assert 4 <= len(spans) <= 8
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert 0.0 < sum(span.end - span.start for span in spans) * 1e-9 < seconds
