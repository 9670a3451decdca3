"""The host's work per step: what is measured, and that a queue adds nothing to it."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType

import pytest

from benchmarks.host_time import UNRANKED, Settings, build, in_milliseconds, measure, submit
from fastgen_jax.engine import Engine
from fastgen_jax.scheduling.policy import POLICIES

SETTINGS = Settings(
    rows=8,
    queued=300,
    policy="fcfs",
    steps=5,
    block_size=32,
    max_model_len=256,
    logprobs=None,
    stop=None,
)


def num_calls(engine: Engine, num_steps: int) -> int:
    """Calls of functions, Python's and others, that so many steps make."""
    count = 0

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        for _ in range(num_steps):
            engine.step()
    finally:
        sys.setprofile(before)
    return count


def calls_of(settings: Settings) -> int:
    """The calls of 40 steps in which everybody decodes."""
    engine, scheduler, _ = build(settings)
    submit(engine, settings, settings.rows)
    while scheduler.num_waiting:
        engine.step()
    submit(engine, settings, settings.queued)
    for _ in range(3):
        engine.step()
    return num_calls(engine, 40)


@pytest.mark.parametrize("policy", [*POLICIES, UNRANKED])
def test_a_queue_adds_no_work_to_a_step(policy: str) -> None:
    settings = replace(SETTINGS, policy=policy)
    one, many = (calls_of(replace(settings, queued=queued)) for queued in (1, 300))
    assert many == one


def test_rows_that_change_nothing_but_a_counter_add_little() -> None:
    """Two appends a row and step, and a little for those whose block fills."""
    few, many = (calls_of(replace(SETTINGS, rows=rows)) for rows in (8, 64))
    per_row_and_step = (many - few) / (64 - 8) / 40
    assert per_row_and_step < 4


def test_every_part_is_timed_for_every_step() -> None:
    times = measure(SETTINGS)
    assert {part: len(seconds) for part, seconds in times.items()} == dict.fromkeys(
        ("schedule", "pack", "read", "step"), SETTINGS.steps
    )
    parts = in_milliseconds(times)
    assert 0 < parts["pack"]["median"] < parts["step"]["median"] <= parts["step"]["p99"]
