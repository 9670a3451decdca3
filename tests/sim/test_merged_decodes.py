"""Planning quiet stretches as one chain changes nothing but the number of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.scheduling.policy import POLICIES
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.costs.model import ConstantCost, CostModel
from fastgen_jax.sim.costs.table import TableCost
from fastgen_jax.sim.result import SimulationResult
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.conversations import Conversations
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts
from fastgen_jax.sim.workloads.workload import Replay, Workload

CONFIG = SchedulerConfig(
    token_budget=16,
    max_num_seqs=4,
    max_step_rows=4,
    max_model_len=64,
    block_size=4,
    num_blocks=24,
)
COSTS: list[CostModel] = [
    ConstantCost(),
    TableCost(points=((1, 0.3), (16, 1.1)), per_row=0.05, per_key=0.003),
]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Replays with surprise ends and equal prompts, or clients in a closed loop."""
    if draw(st.booleans()):
        mix = RequestMix(
            prompts=UniquePrompts(UniformLengths(1, 20)), outputs=UniformLengths(1, 30)
        )
        clients = draw(st.integers(1, 6))
        return ClosedLoop(
            num_clients=clients, num_requests=12, mix=mix, seed=draw(st.integers(0, 99))
        )
    times, names, prompts = st.floats(0, 60), st.integers(0, 2), st.integers(1, 20)
    sizes = st.tuples(times, names, prompts, st.integers(1, 30), st.integers(0, 5))
    return Replay(
        Arrival(
            time=time,
            prompt_token_ids=(name,) * prompt,
            num_output_tokens=output,
            max_tokens=output + more,
        )
        for time, name, prompt, output, more in draw(st.lists(sizes, min_size=1, max_size=10))
    )


def plain(records: tuple[RequestRecord, ...]) -> list[tuple[Any, ...]]:
    """Everything that a record says."""
    return [
        (
            record.request_id,
            record.arrival_time,
            record.num_prompt_tokens,
            record.token_times.tolist(),
            record.first_scheduled_time,
            record.num_cached_tokens,
            record.num_preemptions,
            record.is_complete,
        )
        for record in records
    ]


def both(
    workload: Workload, cost: CostModel, config: SchedulerConfig = CONFIG, **options: Any
) -> tuple[SimulationResult, SimulationResult]:
    """The run with merged decodes, and step by step."""
    merged, single = (
        Simulator(config, cost, merge_decodes=merges, **options).run(workload)
        for merges in (True, False)
    )
    return merged, single


@given(
    workloads(),
    st.sampled_from(COSTS),
    st.sampled_from(list(POLICIES)),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.sampled_from([14, 24, 200]),
)
@settings(max_examples=100, deadline=None)
def test_records_are_the_same(
    workload: Workload,
    cost: CostModel,
    policy: str,
    caching: bool,
    launches_in_flight: int,
    num_blocks: int,
) -> None:
    config = replace(CONFIG, enable_prefix_caching=caching, num_blocks=num_blocks)
    merged, single = both(
        workload, cost, config, policy=policy, launches_in_flight=launches_in_flight
    )
    assert plain(merged.records) == plain(single.records)
    assert sum(s.chain_length for s in merged.steps) == len(single.steps)
    assert merged.scheduler.num_preemptions == single.scheduler.num_preemptions
    assert len(merged.refused) == len(single.refused)


@pytest.mark.parametrize("cost", COSTS)
def test_a_lonely_request_takes_few_plans(cost: CostModel) -> None:
    workload = Replay([Arrival(time=0.0, prompt_token_ids=(1,) * 20, num_output_tokens=40)])
    merged, single = both(workload, cost, replace(CONFIG, enable_prefix_caching=False))
    assert len(single.steps) == 2 + 39
    assert len(merged.steps) <= 6


def test_conversations_that_think_are_merged_too() -> None:
    workload = Conversations(
        rate=0.05,
        num_conversations=4,
        opening=RequestMix(
            prompts=UniquePrompts(UniformLengths(1, 6)), outputs=UniformLengths(4, 9)
        ),
        turns=UniformLengths(2, 3),
        answers=UniformLengths(1, 3),
        think_seconds=9.0,
    )
    merged, single = both(workload, ConstantCost(0.1))
    assert plain(merged.records) == plain(single.records)
    assert len(merged.steps) < len(single.steps)


@pytest.mark.parametrize(
    "options", [{"host_seconds": 0.01}, {"policy": "deadlines"}, {"policy": "static_batching"}]
)
def test_what_may_not_be_merged_is_not(options: dict[str, Any]) -> None:
    workload = Replay([Arrival(time=0.0, prompt_token_ids=(1,) * 20, num_output_tokens=40)])
    merged, single = both(workload, ConstantCost(), **options)
    assert len(merged.steps) == len(single.steps)
