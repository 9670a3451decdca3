"""When XLA's CPU runtime was running programs, read from a trace of jax's profiler.

On a CPU a program that takes its time doesn't run on the thread that launched it. XLA has threads
of its own for that, which the trace names tf_XLAExecute. Whatever such a thread is given to do lies
between two marks. What it computes, or waits for while other threads compute it, are events
between them: from the beginning of the first to the end of the last, the device is busy with one
program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax

EXECUTION_LINE = "tf_XLAExecute"
BEGIN, END = "ThreadpoolListener::StartRegion", "ThreadpoolListener::StopRegion"
MARKS = "ThreadpoolListener::"


class TraceEvent(NamedTuple):
    """A named span on one line of a trace; a line is a thread. Times in nanoseconds."""

    line: str
    name: str
    start: float
    end: float


class Execution(NamedTuple):
    """One program's span on the device, in nanoseconds."""

    start: float
    end: float


class Trace:
    """Filled when its ``recorded_trace`` ends."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []


@contextmanager
def recorded_trace() -> Iterator[Trace]:
    """Records what XLA's execution threads do inside the block."""
    trace = Trace()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a hook on every Python call would slow the host
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            yield trace
        (file,) = Path(directory).rglob("*.xplane.pb")
        trace.events = list(_execution_events(file))


def executions(events: Sequence[TraceEvent]) -> list[Execution]:
    """The programs in the order of their starts; those that the trace cut off are left out."""
    by_line: dict[str, list[TraceEvent]] = {}
    for event in sorted(events, key=lambda one: one.start):
        by_line.setdefault(event.line, []).append(event)
    return sorted(span for line in by_line.values() for span in _line_executions(line))


def gaps(spans: Sequence[Execution]) -> list[float]:
    """Nanoseconds between the end of each program and the beginning of the next; none below 0."""
    return [max(after.start - before.end, 0.0) for before, after in pairwise(spans)]


def _line_executions(events: Sequence[TraceEvent]) -> Iterator[Execution]:
    """Of one line's events in the order of their starts."""
    depth, start, end = 0, float("inf"), float("-inf")
    for event in events:
        if event.name == BEGIN:
            depth += 1
        elif event.name == END and depth > 0:
            depth -= 1
            if depth == 0 and start < end:  # nothing computed: something else than a program
                yield Execution(start, end)
                start, end = float("inf"), float("-inf")
        elif depth > 0 and not event.name.startswith(MARKS):
            start, end = min(start, event.start), max(end, event.end)


def _execution_events(file: Path) -> Iterator[TraceEvent]:
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            if line.name.startswith(EXECUTION_LINE):
                for event in line.events:
                    end = event.start_ns + event.duration_ns
                    yield TraceEvent(line.name, event.name, event.start_ns, end)
