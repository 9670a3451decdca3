"""A history as columns, which data frames take as they are."""

from __future__ import annotations

import math

import numpy as np

from fastgen_jax.observe.lives import RequestLife, lives
from fastgen_jax.observe.records import HistoryWindow
from fastgen_jax.scheduling.plan import Reason

# Numbers in arrays; texts, and what may be None, in lists. All of a table are equally long.
Columns = dict[str, np.ndarray | list[str] | list[str | None]]


def step_columns(window: HistoryWindow) -> Columns:
    """A row for every step; ``StepHistory.step_rows`` names the columns."""
    steps = window.steps
    plans = [step.plan for step in steps]

    def numbers(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)

    def times(values: list[float]) -> np.ndarray:
        return np.array(values, np.float64)

    return {
        "step": numbers([plan.step_index for plan in plans]),
        "planned": times([plan.time for plan in plans]),
        "start": times([step.start for step in steps]),
        "end": times([step.end for step in steps]),
        "seconds": times([step.seconds for step in steps]),
        "shape_tokens": numbers([step.shape.num_tokens for step in steps]),
        "shape_rows": numbers([step.shape.num_rows for step in steps]),
        "num_rows": numbers([len(plan.rows) for plan in plans]),
        "decode_tokens": numbers([plan.num_decode_tokens for plan in plans]),
        "prefill_tokens": numbers([step.num_prefill_tokens for step in steps]),
        "padding_tokens": numbers([step.num_padding_tokens for step in steps]),
        "chain_length": numbers([plan.chain_length for plan in plans]),
        "num_admitted": numbers([len(plan.admitted) for plan in plans]),
        "num_waits": numbers([len(plan.waits) for plan in plans]),
        "num_preempted": numbers([len(plan.preempted) for plan in plans]),
        "num_waiting": numbers([plan.num_waiting for plan in plans]),
        "num_free_blocks": numbers([plan.num_free_blocks for plan in plans]),
    }


def decision_columns(window: HistoryWindow) -> Columns:
    """A row for every decision; ``StepHistory.decision_rows`` names the columns."""
    steps, times, counts, starts, chains = [], [], [], [], []
    samples: list[bool] = []
    ids: list[str] = []
    reasons: list[str] = []
    winners: list[str | None] = []
    for step in window.steps:
        plan = step.plan
        decisions = plan.decisions
        num_ran, num = len(plan.rows), len(decisions)
        ids += [decision.request_id for decision in decisions]
        counts += [decision.num_tokens for decision in decisions]
        reasons += [decision.reason.value for decision in decisions]
        winners += [decision.preempted_for for decision in decisions]
        steps += [plan.step_index] * num
        times += [plan.time] * num
        chains += [plan.chain_length] * num
        starts += plan.rows.starts.tolist() + [-1] * (num - num_ran)
        samples += plan.rows.samples.tolist() + [False] * (num - num_ran)
    return {
        "step": np.array(steps, np.int64),
        "time": np.array(times, np.float64),
        "request_id": ids,
        "num_tokens": np.array(counts, np.int64),
        "reason": reasons,
        "preempted_for": winners,
        "start": np.array(starts, np.int64),
        "samples": np.array(samples, np.bool_),
        "chain_length": np.array(chains, np.int64),
    }


def request_columns(window: HistoryWindow) -> Columns:
    """A row for every request; ``StepHistory.request_rows`` names the columns."""
    found = lives(window, window.requests)
    requests = [life.trace.request for life in found]
    gaps = [np.diff([token.time for token in life.token_times]) for life in found]
    reasons = [request.finish_reason for request in requests]

    def numbers(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)

    def times(values: list[float | None]) -> np.ndarray:
        return np.array([math.nan if v is None else v for v in values], np.float64)

    return {
        "request_id": [request.request_id for request in requests],
        "arrival_time": times([request.arrival_time for request in requests]),
        "first_scheduled_time": times([_first_scheduled(life) for life in found]),
        "first_token_time": times([_first_token(life) for life in found]),
        "end_time": times([life.trace.end_time for life in found]),
        "finish_reason": [None if reason is None else reason.value for reason in reasons],
        "num_prompt_tokens": numbers([request.num_prompt_tokens for request in requests]),
        "num_output_tokens": numbers([request.num_output_tokens for request in requests]),
        "num_cached_tokens": numbers([request.num_cached_tokens for request in requests]),
        "num_chunks": numbers([_count_chunks(life) for life in found]),
        "num_waits": numbers([_count_waits(life) for life in found]),
        "num_preemptions": numbers([request.num_preemptions for request in requests]),
        "mean_gap": times([float(gap.mean()) if len(gap) else None for gap in gaps]),
        "slowest_gap": times([float(gap.max()) if len(gap) else None for gap in gaps]),
    }


def _first_scheduled(life: RequestLife) -> float | None:
    if not life.runs or not life.is_whole:
        return None
    return life.steps[life.runs[0].position].plan.time


def _first_token(life: RequestLife) -> float | None:
    tokens = life.token_times
    return tokens[0].time if tokens and tokens[0].number == 1 else None


def _count_chunks(life: RequestLife) -> int:
    return sum(run.reason is not Reason.DECODE for run in life.runs)


def _count_waits(life: RequestLife) -> int:
    return sum(
        not moment.ran and moment.reason not in (Reason.PREEMPTED, Reason.IN_FLIGHT)
        for moment in life.moments
    )
