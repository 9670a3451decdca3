"""Repeated timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fastgen_jax.bench.spread import Spread


def time_calls(call: Callable[[], object], repeats: int) -> Spread:
    """Seconds of a call that returns when its work is done; one more call before warms up."""
    return time_in_turns({"call": call}, repeats)["call"]


def time_in_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Spread]:
    """Seconds of several calls that take turns, so that all see the same moods of the machine."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Spread.of(values) for name, values in seconds.items()}
