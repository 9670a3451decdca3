"""The simulator's time: what waits for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.policy import Fcfs, Policy
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.load import StepLoad
from fastgen_jax.sim.result import SimulationResult
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts
from fastgen_jax.sim.workloads.workload import Replay


def config(**sizes: Any) -> SchedulerConfig:
    plenty: dict[str, Any] = {
        "token_budget": 16,
        "max_num_seqs": 8,
        "max_step_rows": 8,
        "max_model_len": 256,
        "block_size": 4,
        "num_blocks": 101,
    }
    return SchedulerConfig(**(plenty | sizes))


@dataclass(frozen=True)
class CostPerToken:
    """A second a token."""

    def seconds(self, load: StepLoad) -> float:
        return float(load.num_tokens)


def arrival(time: float, prompt: int, output: int, name: int = 1) -> Arrival:
    return Arrival(time=time, prompt_token_ids=(name,) * prompt, num_output_tokens=output)


def run(*arrivals: Arrival, **options: Any) -> SimulationResult:
    sizes = options.pop("sizes", {})
    return Simulator(config(**sizes), CostPerToken(), **options).run(Replay(arrivals))


def test_one_request() -> None:
    result = run(arrival(2.0, 20, 3))
    (record,) = result.records
    assert record.token_times.tolist() == [22, 23, 24]
    assert (record.ttft, record.latency, record.tpot) == (20, 22, 1)
    assert record.first_scheduled_time == 2.0
    assert [step.num_tokens for step in result.steps] == [16, 4, 1, 1]
    assert result.seconds == 22
    assert record.is_complete


def test_an_arrival_joins_the_plan_after_it_came() -> None:
    """With two launches in flight the step that runs and the one planned are out of reach."""
    late = arrival(18.5, 4, 1, name=2)
    waiting = run(arrival(0, 16, 20), late, launches_in_flight=1)
    ahead = run(arrival(0, 16, 20), late)
    by_id = [{r.request_id: r for r in result.records}["1"] for result in (waiting, ahead)]
    assert by_id[0].token_times.tolist() == [19 + 5]
    assert by_id[1].token_times.tolist() == [20 + 5]
    assert by_id[1].arrival_time == 18.5


def test_host_time_hides_behind_a_running_step() -> None:
    hidden = run(arrival(0, 16, 5), host_seconds=0.25)
    assert hidden.records[0].token_times.tolist() == [16.25, 17.25, 18.25, 19.25, 20.25]
    shown = run(arrival(0, 16, 5), host_seconds=0.25, launches_in_flight=1)
    assert shown.records[0].token_times.tolist() == [16.25, 17.5, 18.75, 20.0, 21.25]


def test_a_request_that_ends_early_runs_one_token_too_far() -> None:
    early = Arrival(time=0, prompt_token_ids=(1,) * 4, num_output_tokens=2, max_tokens=9)
    result = run(early)
    assert result.records[0].num_output_tokens == 2
    assert [step.num_tokens for step in result.steps] == [4, 1, 1]


def test_chains_of_decodes() -> None:
    result = run(arrival(0, 4, 9), sizes={"max_chained_steps": 4})
    assert [step.chain_length for step in result.steps] == [1, 4, 4]
    assert result.records[0].token_times.tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_what_the_scheduler_refuses_is_kept() -> None:
    result = run(arrival(0, 300, 2), arrival(1, 3, 2))
    assert [(a.time, error.field) for a, error in result.refused] == [(0, "num_prompt_tokens")]
    assert len(result.records) == 1


def test_the_models_length_ends_a_request() -> None:
    result = run(arrival(0, 10, 50), sizes={"max_model_len": 16})
    assert result.records[0].num_output_tokens == 6


def test_equal_prompts_share_their_cache() -> None:
    result = run(arrival(0, 12, 1), arrival(50, 12, 1))
    assert [record.num_cached_tokens for record in result.records] == [0, 8]
    assert [record.ttft for record in result.records] == [12, 4]


def test_preempted_requests_lose_no_token() -> None:
    crowd = [arrival(0, 7, 12, name=i) for i in range(3)]
    result = run(*crowd, sizes={"num_blocks": 9, "enable_prefix_caching": False})
    assert [record.num_output_tokens for record in result.records] == [12, 12, 12]
    assert sum(record.num_preemptions for record in result.records) == (
        result.scheduler.num_preemptions
    )
    assert all(np.all(record.gaps > 0) for record in result.records)


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(3, 9)), outputs=UniformLengths(2, 5))
    loop = ClosedLoop(num_clients=3, num_requests=20, mix=mix)
    result = Simulator(config(), ConstantCost(), launches_in_flight=1).run(loop)
    assert len(result.records) == 20
    ends = {client: 0.0 for client in range(3)}
    for record in sorted(result.records, key=lambda record: record.arrival_time):
        assert record.client is not None
        assert record.arrival_time == ends[record.client]
        ends[record.client] = record.finish_time


def test_a_policy_is_made_for_each_run() -> None:
    made: list[Policy] = []

    def make() -> Policy:
        made.append(Fcfs())
        return made[-1]

    simulator = Simulator(config(), ConstantCost(), policy=make)
    for _ in range(2):
        simulator.run(Replay([arrival(0, 3, 1)]))
    assert len(made) == 2


def test_an_impossible_number_of_launches_is_refused() -> None:
    with pytest.raises(ConfigError, match="launches_in_flight=3"):
        Simulator(config(), ConstantCost(), launches_in_flight=3)
