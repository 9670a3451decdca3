"""Steps composed at random: whatever the rules say, the scheduler's invariants hold."""

from __future__ import annotations

import logging
from typing import cast

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from fastgen_jax.errors import ConfigError
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import Reason
from fastgen_jax.scheduling.policy import (
    POLICIES,
    SPLITFUSE,
    Fcfs,
    Policy,
    StepRules,
    StepView,
    get_policy,
)
from fastgen_jax.scheduling.policy_guard import PolicyGuard
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from tests.scheduling.device import FakeDevice
from tests.scheduling.test_machine import Chaos, check_outcome, workloads
from tests.strategies import crowded_configs, make_request, prompts, scheduler_configs


@pytest.fixture(autouse=True)
def _quiet_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chaos raises on purpose, thousands of times."""
    monkeypatch.setattr(logging.getLogger("fastgen_jax.scheduling.policy_guard"), "disabled", True)


class ComposingChaos(Chaos):
    """Chaos that composes steps at random too, and looks at everything it is shown."""

    def __init__(self, seed: int, *, whole_prompts: bool) -> None:
        super().__init__(seed)
        self.whole_prompts = whole_prompts

    def compose(self, step: StepView) -> StepRules:
        """Any rules, none, or an error."""
        assert step.num_running == len([*step.prefilling, *step.decoding, *step.draining])
        kind = self.random.random()
        if kind < 0.05:
            raise RuntimeError("no rules today")
        if kind < 0.1:
            return cast(StepRules, "as you like")
        choose = self.random.choice
        return StepRules(
            stalls_decodes=choose([False, True]),
            admits=choose([False, True]),
            prompt_tokens=choose([None, None, 0, 1, 5]),
            max_chunk=choose([None, None, 1, 2, 3]),
            max_prompts=choose([None, None, 0, 1, 2]),
        )


def policies() -> st.SearchStrategy[Policy]:
    """All that have a name, and chaos."""
    chaos = st.builds(ComposingChaos, st.integers(0, 1000), whole_prompts=st.booleans())
    return st.one_of(st.sampled_from(list(POLICIES)).map(get_policy), chaos, chaos)


@given(scheduler_configs(), policies(), workloads(), st.integers(0, 2))
@settings(max_examples=200, deadline=None)
def test_every_workload_ends_with_every_token(
    config: SchedulerConfig, policy: Policy, requests: list[Request], latency: int
) -> None:
    device = FakeDevice(config, policy)
    for request in requests:
        device.submit(request)
    device.drain(latency=latency)
    check_outcome(device)


@given(
    crowded_configs(), policies(), st.lists(prompts(4), min_size=6, max_size=12), st.integers(0, 2)
)
@settings(max_examples=200, deadline=None)
def test_a_crowd_on_a_small_pool_loses_nothing(
    config: SchedulerConfig, policy: Policy, crowd: list[tuple[int, ...]], latency: int
) -> None:
    device = FakeDevice(config, policy)
    for i, prompt in enumerate(crowd):
        device.submit(make_request(str(i), prompt, 40, priority=i % 2))
    device.drain(latency=latency)
    check_outcome(device)


class Always(Fcfs):
    """The same rules in every step."""

    def __init__(self, **rules: bool | int | None) -> None:
        self.rules = StepRules(**rules)  # type: ignore[arg-type]

    def compose(self, step: StepView) -> StepRules:
        """The rules."""
        return self.rules


CONFIG = SchedulerConfig(
    token_budget=16,
    max_num_seqs=4,
    max_step_rows=4,
    max_model_len=64,
    block_size=4,
    num_blocks=65,
    chunk_multiple=4,
)


def first_shares(*sizes: int, **rules: bool | int | None) -> dict[str, int]:
    """Tokens of each request in the first step."""
    device = FakeDevice(CONFIG, Always(**rules))
    for name, size in zip("abcd", sizes, strict=False):
        device.submit(make_request(name, size, 2))
    plan = device.step()
    waits = {request.request_id: reason for request, reason in plan.waits}
    assert set(waits.values()) <= {Reason.POLICY_RULES, Reason.NO_BUDGET}
    return {row.request.request_id: row.num_tokens for row in plan.rows}


def test_limits_of_prompts() -> None:
    assert first_shares(9, 9) == {"a": 9, "b": 7}
    assert first_shares(9, 9, prompt_tokens=10) == {"a": 9, "b": 1}
    assert first_shares(9, 9, max_prompts=1) == {"a": 9}
    assert first_shares(9, 9, 9, 9, max_chunk=5) == {"a": 5, "b": 5, "c": 5, "d": 1}
    assert first_shares(9, 2, max_chunk=5, prompt_tokens=6) == {"a": 5, "b": 1}
    assert first_shares(20, max_chunk=7) == {"a": 7}, "rounding's top-up keeps the limit"


@pytest.mark.parametrize("rules", [{"admits": False}, {"prompt_tokens": 0}, {"max_prompts": 0}])
def test_rules_that_let_nobody_run_are_set_aside(rules: dict[str, int]) -> None:
    assert first_shares(9, 9, **rules) == {"a": 9, "b": 7}


def test_rules_hold_while_somebody_runs() -> None:
    device = FakeDevice(CONFIG, Always(admits=False))
    device.submit(make_request("a", 4, 3))
    device.step()
    device.submit(make_request("b", 4, 3))
    plan = device.step()
    assert [row.request.request_id for row in plan.rows] == ["a"]
    assert [(r.request_id, reason) for r, reason in plan.waits] == [("b", Reason.POLICY_RULES)]


def test_impossible_limits_are_refused() -> None:
    for name in ("max_chunk", "prompt_tokens", "max_prompts"):
        with pytest.raises(ConfigError, match=rf"^{name}=-1"):
            StepRules(**{name: -1})  # type: ignore[arg-type]


def test_an_answer_that_is_no_rules_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("fastgen_jax.scheduling.policy_guard").disabled = False
    policy = Always()
    policy.rules = cast(StepRules, 3)
    guard = PolicyGuard(policy)
    view = FakeDevice(CONFIG).scheduler._view
    assert guard.compose(view) is SPLITFUSE
    assert "compose gave 3" in caplog.text
