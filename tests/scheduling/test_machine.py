"""Random arrivals, priorities, latencies, aborts, failures and policies on tiny pools."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.scheduling.policy import Policy, RequestView
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from tests.scheduling.device import FakeDevice, expected_output
from tests.strategies import crowded_configs, make_request, prompts, salts, scheduler_configs


@pytest.fixture(autouse=True)
def _quiet_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chaos raises on purpose, thousands of times."""
    monkeypatch.setattr(logging.getLogger("fastgen_jax.scheduling.policy_guard"), "disabled", True)


class Chaos:
    """A policy that answers at random: leaves out, repeats, invents, raises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.foreign = make_request("foreign")

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """Any list of views, or an error."""
        if self.random.random() < 0.1:
            raise RuntimeError("no order today")
        pool = [*candidates, *candidates, self.foreign]
        return self.random.sample(pool, self.random.randint(0, len(pool)))

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """Any view, or an error."""
        if self.random.random() < 0.1:
            raise RuntimeError("no victim today")
        return self.random.choice([*running, self.foreign])


class RankedChaos(Chaos):
    """Chaos whose ranks aren't even numbers."""

    def rank(self, request: RequestView) -> float:
        """A number, or not."""
        return self.random.choice([0.0, 1.5, float("nan"), float("-inf"), "x"])  # type: ignore


def policies() -> st.SearchStrategy[str | Policy]:
    """Sane ones and adversaries."""
    seeds = st.integers(0, 1000)
    return st.one_of(
        st.sampled_from(["fcfs", "priority"]), seeds.map(Chaos), seeds.map(RankedChaos)
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Checks live in FakeDevice: they run in each step and each read."""

    @initialize(config=scheduler_configs(), policy=policies())
    def start(self, config: SchedulerConfig, policy: str | Policy) -> None:
        self.device = FakeDevice(config, policy)
        self.count = 0

    @rule(
        prompt=prompts(),
        max_tokens=st.integers(1, 20),
        priority=st.integers(0, 2),
        salt=salts(),
        prompt_logprobs=st.sampled_from([None, None, None, 1]),
    )
    def submit(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        priority: int,
        salt: str | None,
        prompt_logprobs: int | None,
    ) -> None:
        self.count += 1
        self.device.submit(
            make_request(
                str(self.count),
                prompt,
                max_tokens,
                priority=priority,
                salt=salt,
                prompt_logprobs=prompt_logprobs,
            )
        )

    @rule()
    @precondition(lambda self: len(self.device.in_flight) < 3)
    def step(self) -> None:
        plan = self.device.step()
        for row in plan.rows:
            if row.request.params.prompt_logprobs is not None and row.request in plan.admitted:
                assert row.start == 0, "a prompt with logprobs must be computed in full"

    @rule()
    @precondition(lambda self: self.device.in_flight)
    def read(self) -> None:
        self.device.read()

    @rule(data=st.data())
    @precondition(lambda self: self.device.scheduler.has_unfinished)
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.device.scheduler._live)))
        request = self.device.scheduler.abort(request_id)
        assert request is not None
        assert request.finish_reason is FinishReason.ABORT
        assert self.device.scheduler.abort(request_id) is None
        self.device.scheduler.check()

    @rule(data=st.data())
    @precondition(lambda self: self.device.scheduler.has_unfinished)
    def fail(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.device.scheduler._live)))
        request = self.device.requests[request_id]
        self.device.scheduler.fail(request, "logits are not finite")
        index = self.device.scheduler.pool.index
        assert all(index.find(digest) is None for digest in request.block_hashes)
        assert request.error == "logits are not finite"
        self.device.scheduler.check()

    @rule()
    def reset_prefix_cache(self) -> None:
        self.device.scheduler.reset_prefix_cache()
        assert len(self.device.scheduler.pool.index) == 0
        self.device.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "device"):
            return
        self.device.drain()
        check_outcome(self.device)


def check_outcome(device: FakeDevice) -> None:
    """Everybody ended; those that ended by length have every token, whatever befell them."""
    for request in device.requests.values():
        assert request.state is RequestState.FINISHED
        if request.finish_reason is FinishReason.LENGTH:
            assert request.output_token_ids == expected_output(request)
    pool = device.scheduler.pool
    assert pool.num_free == pool.num_usable
    assert device.scheduler.num_running == device.scheduler.num_waiting == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    """Up to eight requests that arrive together."""
    sizes = draw(st.lists(st.tuples(prompts(), st.integers(1, 20)), min_size=1, max_size=8))
    return [
        make_request(str(i), prompt, max_tokens, priority=i % 2)
        for i, (prompt, max_tokens) in enumerate(sizes)
    ]


@given(scheduler_configs(), policies(), workloads(), st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_every_workload_ends_with_every_token(
    config: SchedulerConfig, policy: str | Policy, requests: list[Request], latency: int
) -> None:
    device = FakeDevice(config, policy)
    for request in requests:
        device.submit(request)
    device.drain(latency=latency)
    check_outcome(device)


@given(
    crowded_configs(),
    policies(),
    st.lists(prompts(4), min_size=6, max_size=12),
    st.integers(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_a_crowd_on_a_small_pool_loses_nothing(
    config: SchedulerConfig, policy: str | Policy, crowd: list[tuple[int, ...]], latency: int
) -> None:
    device = FakeDevice(config, policy)
    for i, prompt in enumerate(crowd):
        device.submit(make_request(str(i), prompt, 40, priority=i % 2))
    plans = device.drain(latency=latency)
    event(f"most preemptions in a plan: {max(len(plan.preempted) for plan in plans)}")
    check_outcome(device)


@given(scheduler_configs(), workloads())
@settings(max_examples=80, deadline=None)
def test_plans_dont_depend_on_when_results_are_read(
    config: SchedulerConfig, requests: list[Request]
) -> None:
    """Without preemption and sharing, the plans of a run are those of a synchronous one."""
    outcomes: list[list[list[tuple[str, int, int]]]] = []
    roomy = SchedulerConfig(
        token_budget=config.token_budget,
        max_num_seqs=8,
        max_step_rows=8,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        num_blocks=400,
        chunk_multiple=config.chunk_multiple,
        enable_prefix_caching=False,
    )
    for latency in (0, 1):
        device = FakeDevice(roomy)
        for r in requests:
            device.submit(make_request(r.request_id, r.prompt_token_ids, r.params.max_tokens or 1))
        plans = device.drain(latency=latency)
        rows = [
            [(row.request.request_id, row.start, row.num_tokens) for row in plan.rows]
            for plan in plans
        ]
        outcomes.append([step for step in rows if step])
    assert outcomes[0] == outcomes[1]
