"""A simulated run decides what the engine decides, for the same arrivals before the same steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen_jax import SamplingParams
from fastgen_jax.observe.observer import PlanWatcher
from fastgen_jax.scheduling.plan import Decision, StepPlan
from fastgen_jax.scheduling.policy import POLICIES
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.workload import Replay
from fastgen_jax.testing import fake_engine

SIZES: dict[str, Any] = {
    "token_budget": 16,
    "max_num_seqs": 4,
    "max_model_len": 64,
    "block_size": 4,
    "num_blocks": 24,
    "chunk_multiple": 2,
}
# The deadlines' policy looks at the clock, and the fake engine's isn't virtual.
TIMELESS = [name for name in POLICIES if name != "deadlines"]

type Seen = tuple[tuple[Decision, ...], int]


def seen(plan: StepPlan) -> Seen:
    """All that a plan says without its requests."""
    return plan.decisions, plan.chain_length


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """Requests with few different prompts, so that some share a beginning."""
    sizes = st.tuples(st.integers(0, 12), st.integers(1, 16), st.integers(1, 12), st.integers(0, 3))
    return [
        Arrival(
            time=time + 0.5,
            prompt_token_ids=(prompt_id,) * length,
            num_output_tokens=output,
            max_tokens=output + extra,
        )
        for prompt_id, (time, length, output, extra) in enumerate(
            draw(st.lists(sizes, min_size=1, max_size=8))
        )
    ]


def simulate(requests: list[Arrival], policy: str, **sizes: Any) -> tuple[list[Seen], list[int]]:
    """What each step decided, and before which step each request came."""
    plans: list[Seen] = []
    steps: list[int] = []

    class Watched(Replay):
        """The simulator asks for the next arrival as soon as it has taken one."""

        def start(self) -> Iterator[Arrival]:
            for arrival in self.arrivals:
                yield arrival
                steps.append(len(plans))

    config = SchedulerConfig(max_step_rows=sizes["max_num_seqs"], **sizes)
    watcher = PlanWatcher(lambda plan: plans.append(seen(plan)))
    simulator = Simulator(
        config, ConstantCost(), policy=policy, observers=[watcher], merge_decodes=False
    )
    result = simulator.run(Watched(requests))
    assert not result.refused
    assert len(steps) == len(requests)
    return plans, steps


def serve(requests: list[Arrival], steps: list[int], policy: str, **sizes: Any) -> list[Seen]:
    """What the engine decides when the same requests come before the same steps."""
    plans: list[Seen] = []
    lengths = {request.prompt_token_ids[0]: request.num_output_tokens for request in requests}
    prompts = {request.prompt_token_ids[0]: len(request.prompt_token_ids) for request in requests}

    def next_token(history: Any) -> int:
        """The prompt's first token; at the end one that stops."""
        is_last = len(history) - prompts[history[0]] == lengths[history[0]] - 1
        return 200 if is_last else history[0]

    engine = fake_engine(
        policy=policy,
        next_token=next_token,
        eos_token_ids=(200,),
        on_plan=lambda plan: plans.append(seen(plan)),
        **sizes,
    )
    order = Replay(requests).arrivals
    come = 0
    while engine.has_work or come < len(order):
        while come < len(order) and steps[come] == len(plans):
            request = order[come]
            come += 1
            params = SamplingParams(max_tokens=request.max_tokens, temperature=0.0)
            engine.submit(request.prompt_token_ids, params)
        engine.step()
    return plans


@given(arrivals(), st.sampled_from(TIMELESS), st.booleans(), st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None)
def test_simulated_decisions_are_the_engines(
    requests: list[Arrival], policy: str, caching: bool, max_chained_steps: int
) -> None:
    sizes = SIZES | {
        "enable_prefix_caching": caching,
        "max_chained_steps": max_chained_steps,
    }
    plans, steps = simulate(requests, policy, **sizes)
    assert serve(requests, steps, policy, **sizes) == plans


def test_a_different_budget_would_show() -> None:
    requests = [Arrival(time=0, prompt_token_ids=(3,) * 20, num_output_tokens=4, max_tokens=4)]
    plans, steps = simulate(requests, "fcfs", **SIZES)
    assert serve(requests, steps, "fcfs", **(SIZES | {"token_budget": 12})) != plans


@pytest.mark.parametrize("policy", TIMELESS)
def test_a_run_can_be_repeated(policy: str) -> None:
    requests = [
        Arrival(time=i * 0.7, prompt_token_ids=(i,) * (3 + i % 12), num_output_tokens=1 + i % 7)
        for i in range(30)
    ]
    assert simulate(requests, policy, **SIZES) == simulate(requests, policy, **SIZES)
