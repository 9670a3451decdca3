"""A simulation decides what the engine with a real model decides, for the same arrivals."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.observe.observer import PlanWatcher
from fastgen_jax.scheduling.plan import Decision, Reason, StepPlan
from fastgen_jax.scheduling.policy import POLICIES
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.workload import Replay
from tests.e2e.conftest import TINY_MODEL

# The deadlines' policy looks at the clock, and the engine's isn't virtual.
TIMELESS = [name for name in POLICIES if name != "deadlines"]
REASONS = {Reason.CHUNK, Reason.DECODE, Reason.PREEMPTED, Reason.NO_ROW, Reason.NO_BLOCKS}


class Decisions:
    """All that plans say without their requests; whoever empties it starts anew."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[Decision, ...], int]] = []
        self.reasons: set[Reason] = set()

    def take(self, plan: StepPlan) -> None:
        self.seen.append((plan.decisions, plan.chain_length))
        self.reasons.update(decision.reason for decision in plan.decisions)


@pytest.fixture(scope="module")
def decisions() -> Decisions:
    return Decisions()


@pytest.fixture(scope="module")
def watched_llm(tiny_settings: dict[str, object], decisions: Decisions) -> Iterator[LLM]:
    """A pool so small that requests are preempted."""
    settings = tiny_settings | {"num_kv_blocks": 20, "max_num_seqs": 4, "max_chained_steps": 2}
    with LLM(TINY_MODEL, observers=[PlanWatcher(decisions.take)], **settings) as llm:
        yield llm


def traffic() -> list[Arrival]:
    """Prompts with tokens of their own, some longer than a step."""
    rng = Random(5)
    return [
        Arrival(
            time=0.5 + rng.randint(0, 60),
            prompt_token_ids=tuple(rng.randrange(3, 250) for _ in range(rng.randint(1, 16))),
            num_output_tokens=rng.randint(1, 90),
        )
        for _ in range(16)
    ]


def simulate(config: SchedulerConfig, policy: str) -> tuple[Decisions, list[int]]:
    """What each step decides, and before which step each request comes."""
    decisions, steps = Decisions(), []

    class Watched(Replay):
        """The simulator asks for the next arrival as soon as it has taken one."""

        def start(self) -> Iterator[Arrival]:
            for arrival in self.arrivals:
                yield arrival
                steps.append(len(decisions.seen))

    watcher = PlanWatcher(decisions.take)
    simulator = Simulator(
        config, ConstantCost(), policy=policy, observers=[watcher], merge_decodes=False
    )
    simulator.run(Watched(traffic()))
    return decisions, steps


@pytest.mark.parametrize("policy", TIMELESS)
def test_decisions_are_the_same(watched_llm: LLM, decisions: Decisions, policy: str) -> None:
    watched_llm.use_policy(policy)
    engine = watched_llm.engine
    simulated, steps = simulate(engine.scheduler.config, policy)
    decisions.seen.clear()
    arrivals = Replay(traffic()).arrivals
    ids: list[str] = []
    come = 0
    while engine.has_work or come < len(arrivals):
        while come < len(arrivals) and steps[come] == len(decisions.seen):
            request = arrivals[come]
            come += 1
            params = SamplingParams(
                temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True
            )
            (completion,) = engine.submit(request.prompt_token_ids, params)
            ids.append(completion.request.request_id)
        engine.step()
    numbers = {request_id: str(number) for number, request_id in enumerate(ids)}
    assert [(renumbered(seen, numbers), chain) for seen, chain in decisions.seen] == simulated.seen


def test_the_traffic_is_hard_enough(watched_llm: LLM) -> None:
    simulated, _ = simulate(watched_llm.engine.scheduler.config, "fcfs")
    assert simulated.reasons >= REASONS
    assert max(chain for _, chain in simulated.seen) == 2


def renumbered(decisions: tuple[Decision, ...], numbers: dict[str, str]) -> tuple[Decision, ...]:
    """With request ids that count from 0, as a simulation's do."""
    return tuple(
        decision._replace(
            request_id=numbers[decision.request_id],
            preempted_for=decision.preempted_for and numbers[decision.preempted_for],
        )
        for decision in decisions
    )
