"""What each ready-made policy does, story by story."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.scheduling.plan import Reason, StepPlan
from fastgen_jax.scheduling.policies.deadlines import Deadlines
from fastgen_jax.scheduling.policies.fixed_chunk import FixedChunk
from fastgen_jax.scheduling.policies.shortest_remaining import ShortestRemaining
from fastgen_jax.scheduling.policies.step_times import StepTimes
from fastgen_jax.scheduling.policy import (
    POLICIES,
    ComposingPolicy,
    Policy,
    get_policy,
    runs_whole_prompts,
)
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from tests.scheduling.device import FakeDevice
from tests.strategies import make_request


def make_device(policy: str | Policy, **sizes: Any) -> FakeDevice:
    """Plenty of everything but what the test names."""
    plenty: dict[str, Any] = {
        "token_budget": 16,
        "max_num_seqs": 8,
        "max_step_rows": 8,
        "max_model_len": 256,
        "block_size": 4,
        "num_blocks": 101,
    }
    return FakeDevice(SchedulerConfig(**(plenty | sizes)), policy)


def shares(plan: StepPlan) -> dict[str, int]:
    return {row.request.request_id: row.num_tokens for row in plan.rows}


def trace(device: FakeDevice, *requests: tuple[str, int, int]) -> list[dict[str, int]]:
    """Tokens by request of each step, for requests that arrive together: id, prompt, output."""
    for request_id, prompt, max_tokens in requests:
        device.submit(make_request(request_id, prompt, max_tokens))
    return [shares(plan) for plan in device.drain()]


def test_iteration_level_runs_whole_prompts_beside_decodes() -> None:
    device = make_device("iteration_level")
    assert trace(device, ("a", 10, 3), ("b", 8, 2), ("c", 5, 1))[:3] == [
        {"a": 10},
        {"a": 1, "b": 8, "c": 5},
        {"a": 1, "b": 1},
    ]


def test_prefill_first_stalls_decodes() -> None:
    device = make_device("prefill_first")
    device.submit(make_request("a", 10, 4))
    assert shares(device.step()) == {"a": 10}
    assert shares(device.step()) == {"a": 1}
    device.submit(make_request("b", 12, 2))
    device.submit(make_request("c", 12, 2))
    plan = device.step()
    assert shares(plan) == {"b": 12}
    decisions = {decision.request_id: decision.reason for decision in plan.decisions}
    assert decisions["a"] is Reason.POLICY_RULES
    assert decisions["c"] is Reason.NO_BUDGET
    assert shares(device.step()) == {"c": 12}
    assert shares(device.step()) == {"a": 1, "b": 1, "c": 1}


def test_fixed_chunk_has_one_prompt_a_step() -> None:
    device = make_device(FixedChunk(6))
    assert trace(device, ("a", 10, 3), ("b", 4, 2))[:4] == [
        {"a": 6},
        {"a": 4},
        {"a": 1, "b": 4},
        {"a": 1, "b": 1},
    ]


def test_static_batching_lets_nobody_join() -> None:
    device = make_device("static_batching", max_num_seqs=2)
    steps = trace(device, ("a", 20, 2), ("b", 5, 4), ("c", 5, 1))
    assert [step for step in steps if step] == [
        {"a": 16},
        {"a": 4, "b": 5},
        {"a": 1, "b": 1},
        {"b": 1},
        {"b": 1},
        {"c": 5},
    ]


def test_shortest_remaining_goes_first() -> None:
    device = make_device(ShortestRemaining(aging=0), token_budget=8)
    steps = trace(device, ("a", 8, 8), ("b", 8, 2), ("c", 4, 3))
    assert steps[0] == {"c": 4, "b": 4}
    assert steps[1] == {"c": 1, "b": 4, "a": 3}


def test_aging_lets_the_long_request_through() -> None:
    long, short = make_request("a", 100, 10), make_request("b", 5, 5)
    short.arrival_index = 30
    assert ShortestRemaining(aging=2).rank(long) > ShortestRemaining(aging=2).rank(short)
    assert ShortestRemaining(aging=4).rank(long) < ShortestRemaining(aging=4).rank(short)


def test_deadlines_order_by_when_the_first_token_is_due() -> None:
    relaxed, urgent, careless = (make_request(name) for name in "abc")
    relaxed.targets, urgent.targets = LatencyTargets(ttft=5), LatencyTargets(ttft=1)
    urgent.arrival_time = 2
    requests = [careless, relaxed, urgent]
    assert list(Deadlines().order(requests)) == [urgent, relaxed, careless]
    assert Deadlines().choose_victim(requests) is careless


def test_deadlines_leave_room_for_the_pace_of_decodes() -> None:
    policy = Deadlines(min_prompt_tokens=2, step_seconds=lambda num_tokens: 0.01 * num_tokens)
    device = make_device(policy)
    paced = make_request("a", 4, 4)
    paced.targets = LatencyTargets(tpot=0.0601)
    device.submit(paced)
    device.step()
    device.submit(make_request("b", 30, 2))
    assert shares(device.step()) == {"a": 1, "b": 5}
    paced.targets = LatencyTargets(tpot=0.001)
    assert shares(device.step()) == {"a": 1, "b": 2}
    paced.targets = LatencyTargets()
    assert shares(device.step()) == {"a": 1, "b": 15}


def test_step_times_learn_a_line() -> None:
    times, now, sizes = StepTimes(), 0.0, [10, 40, 20, 100, 60, 30]
    for index in range(30):
        # What has just been read is the plan before the last.
        now += 0.5 + 0.01 * sizes[(index - 2) % 6]
        times.observe(now, sizes[index % 6 - 1])
    assert times.tokens_within(1.0, 1000) == pytest.approx(50, abs=1)
    assert times.tokens_within(0.2, 1000) == 0
    assert times.tokens_within(1e6, 1000) == 1000
    assert StepTimes().tokens_within(1.0, 10) is None


@pytest.mark.parametrize("name", ["iteration_level", "prefill_first"])
def test_whole_prompts_beyond_the_budget_are_refused(name: str) -> None:
    device = make_device(name)
    with pytest.raises(InvalidRequestError, match=r"num_prompt_tokens=17.*policy.*token_budget=16"):
        device.scheduler.submit(make_request("a", 17))
    assert device.submit(make_request("b", 16))
    assert make_device("fcfs").submit(make_request("a", 17))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="chunk_size=0"):
        FixedChunk(0)
    with pytest.raises(ConfigError, match="min_prompt_tokens=0"):
        Deadlines(min_prompt_tokens=0)
    with pytest.raises(ConfigError, match="aging=-1"):
        ShortestRemaining(-1)


def test_the_plain_orders_compose_nothing() -> None:
    """They pay nothing for the question."""
    composing = {name for name in POLICIES if isinstance(get_policy(name), ComposingPolicy)}
    assert composing == {
        "deadlines",
        "prefill_first",
        "fixed_chunk",
        "static_batching",
    }
    whole = {name for name in POLICIES if runs_whole_prompts(get_policy(name))}
    assert whole == {"iteration_level", "prefill_first"}
