"""What is kept, for how long, and what its tables say."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen_jax.batching import StepShape
from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.observe.observer import Observer
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import Reason, StepPlan
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts
from tests.observe.stepped import Stepped, random_run


class Launches(Observer):
    """Every launch with its shape."""

    def __init__(self) -> None:
        self.seen: list[tuple[StepPlan, StepShape]] = []

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        self.seen.append((plan, shape))


def simulate(history: StepHistory, num_requests: int = 12) -> None:
    config = SchedulerConfig(
        token_budget=16,
        max_num_seqs=3,
        max_step_rows=3,
        max_model_len=64,
        block_size=4,
        num_blocks=17,
    )
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(2, 30)), outputs=UniformLengths(2, 9))
    clients = ClosedLoop(num_clients=4, num_requests=num_requests, mix=mix)
    Simulator(config, ConstantCost(), observers=[history]).run(clients)


@pytest.mark.parametrize("max_steps", [0, -1, 1.5, True])
def test_sizes_out_of_range_are_refused(max_steps: int) -> None:
    with pytest.raises(ConfigError, match="max_steps"):
        StepHistory(max_steps)


@pytest.mark.parametrize("max_steps", [1, 7, 1000])
def test_it_holds_the_last_steps_and_their_requests_alone(max_steps: int) -> None:
    made = random_run(3, max_steps=max_steps)
    whole = random_run(3).history.window()
    window = made.history.window()
    assert len(made.history) == len(window.steps) == min(max_steps, len(whole.steps))
    assert window.is_cut == (max_steps < len(whole.steps))
    kept = whole.steps[-len(window.steps) :]
    assert [s.index for s in window.steps] == [s.index for s in kept]
    # The first one's start too, although what it followed is forgotten.
    assert [(s.start, s.end, s.shape) for s in window.steps] == [
        (s.start, s.end, s.shape) for s in kept
    ]
    ran = {request.request_id for step in kept for request in step.plan.rows.requests}
    known = {trace.request_id for trace in window.requests}
    assert ran <= known
    assert len(known) <= len(ran) + 1 or max_steps == 1000


def test_requests_that_never_ran_are_bounded_too() -> None:
    made = Stepped(max_steps=2)
    for _ in range(200):
        (completion,) = made.engine.submit([1], SamplingParams(max_tokens=2))
        made.engine.abort(completion.request)
    assert len(made.history.window().requests) == 64


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), chain=st.sampled_from([1, 3]), rows=st.integers(1, 5))
def test_the_places_of_every_step_are_told_exactly(seed: int, chain: int, rows: int) -> None:
    made = random_run(seed, max_chained_steps=chain, max_num_seqs=rows)
    table = made.history.step_rows()
    places = table["decode_tokens"] + table["prefill_tokens"] + table["padding_tokens"]
    assert np.array_equal(places, table["shape_tokens"])
    metrics = made.engine.metrics()
    chains = table["chain_length"]
    assert (table["decode_tokens"] * chains).sum() == metrics.num_decode_tokens
    assert (table["prefill_tokens"] * chains).sum() == metrics.num_prefill_tokens
    assert (table["padding_tokens"] * chains).sum() == metrics.num_padding_tokens
    assert table["num_preempted"].sum() == metrics.scheduler.num_preemptions


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), chain=st.sampled_from([1, 3]))
def test_reasons_and_recomputed_tokens_are_those_of_the_decisions(seed: int, chain: int) -> None:
    made = random_run(seed, max_chained_steps=chain)
    metrics = made.engine.metrics()
    table = made.history.decision_rows()
    counts = dict.fromkeys(Reason, 0)
    for reason, length in zip(table["reason"], table["chain_length"], strict=True):
        counts[Reason(reason)] += length if reason == "decode" else 1
    assert counts == metrics.reasons
    seen: dict[str, int] = {}
    again = 0
    columns = (table["request_id"], table["start"], table["num_tokens"], table["chain_length"])
    for request_id, start, count, length in zip(*columns, strict=True):
        if count:
            done = seen.get(request_id, 0)
            again += max(min(start + count, done) - start, 0)
            seen[request_id] = max(done, start + count + length - 1)
    assert metrics.num_recomputed_tokens == again


def test_tokens_of_requests_are_read_when_the_engine_says() -> None:
    made = random_run(5, max_chained_steps=3)
    table = made.history.request_rows()
    for trace, first in zip(made.history.window().requests, table["first_token_time"], strict=True):
        assert np.isnan(first) == (trace.request.num_output_tokens == 0)
        if not np.isnan(first):
            assert trace.request.arrival_time < first <= trace.end_time
    assert table["num_output_tokens"].sum() == made.engine.metrics().num_output_tokens


def test_frames_take_the_tables_as_they_are() -> None:
    history = random_run(1).history
    for table in (history.step_rows(), history.decision_rows(), history.request_rows()):
        frame = pd.DataFrame(table)
        assert list(frame.columns) == list(table)
        assert len(frame) == len(next(iter(table.values()))) > 0
        for name in table:
            assert f"{name}" in (
                (StepHistory.step_rows.__doc__ or "")
                + (StepHistory.decision_rows.__doc__ or "")
                + (StepHistory.request_rows.__doc__ or "")
            )


def test_part_of_the_steps() -> None:
    history = random_run(1).history
    window = history.window(5, 9)
    assert [step.index for step in window.steps] == [5, 6, 7, 8, 9]
    assert window.is_cut
    for first, last in ((9, 5), (10_000, None)):
        with pytest.raises(InvalidRequestError, match="steps 0 to"):
            history.window(first, last)


def test_a_simulation_has_no_shapes_and_begins_anew() -> None:
    history = StepHistory()
    simulate(history)
    first = history.step_rows()
    assert not first["padding_tokens"].any()
    assert np.array_equal(first["seconds"] > 0, first["num_rows"] > 0)
    simulate(history)
    again = history.step_rows()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_it_may_be_asked_while_the_engine_steps() -> None:
    made = Stepped(max_steps=20)
    for _ in range(30):
        made.submit(9, 30)
    failures: list[BaseException] = []
    is_done = threading.Event()

    def ask() -> None:
        try:
            while not is_done.is_set():
                made.history.step_rows()
                made.history.request_rows()
                made.history.timeline().svg()
                for trace in made.history.window().requests[:2]:
                    made.history.explain(trace.request_id)
        except InvalidRequestError:
            pass  # rotated out between two questions
        except BaseException as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    made.run()
    is_done.set()
    asking.join()
    assert not failures
