"""The contract holds for every ready-made policy, and each of its tests can fail."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any, cast

import pytest

from fastgen_jax.scheduling.policy import (
    POLICIES,
    Fcfs,
    Policy,
    RequestView,
    StepRules,
    StepView,
)
from fastgen_jax.testing import PolicyContract
from fastgen_jax.testing.policy_traffic import run_traffic
from fastgen_jax.testing.policy_witness import watched


@pytest.fixture(autouse=True)
def _quiet_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some policies here raise on purpose."""
    monkeypatch.setattr(logging.getLogger("fastgen_jax.scheduling.policy_guard"), "disabled", True)


class TestFcfs(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["fcfs"]()


@pytest.mark.slow
class TestPriority(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["priority"]()


@pytest.mark.slow
class TestShortestRemaining(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["shortest_remaining"]()


class TestDeadlines(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["deadlines"]()


@pytest.mark.slow
class TestIterationLevel(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["iteration_level"]()


class TestPrefillFirst(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["prefill_first"]()


@pytest.mark.slow
class TestFixedChunk(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["fixed_chunk"]()


@pytest.mark.slow
class TestStaticBatching(PolicyContract):
    def make_policy(self) -> Policy:
        return POLICIES["static_batching"]()


class Unranked:
    """By arrival, without ranks, so that ``order`` is asked about the queue too."""

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return sorted(candidates, key=lambda request: request.arrival_index)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        return max(running, key=lambda request: request.arrival_index)


class TestUnranked(PolicyContract):
    def make_policy(self) -> Policy:
        return Unranked()


class Forgetful(Unranked):
    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return candidates[1:]


class Repeating(Unranked):
    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return [*candidates, candidates[0]]


class Raising(Unranked):
    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        raise RuntimeError("no order today")


class Meddling(Unranked):
    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        cast(Any, candidates[0]).priority += 1
        return candidates


class Inventing(Unranked):
    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        return cast(RequestView, None)


class Rankless(Fcfs):
    def rank(self, request: RequestView) -> float:
        return float("nan")


class Ruleless(Fcfs):
    def compose(self, step: StepView) -> StepRules:
        return cast(StepRules, "as you like")


class Fickle(Fcfs):
    """Decides by what happened in runs before."""

    count = itertools.count()

    def compose(self, step: StepView) -> StepRules:
        return StepRules(prompt_tokens=1 + next(self.count) % 7)


def contract_of(policy: type[Policy]) -> PolicyContract:
    class Contract(PolicyContract):
        def make_policy(self) -> Policy:
            return policy()

    return Contract()


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Forgetful, "order left out"),
        (Repeating, "order repeated"),
        (Raising, "order raised"),
        (Meddling, "order changed a request"),
        (Inventing, "choose_victim gave None"),
        (Rankless, "rank gave nan"),
        (Ruleless, "compose gave 'as you like'"),
    ],
)
def test_bad_answers_are_found(policy: type[Policy], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        contract_of(policy).test_its_answers_need_no_repair()


def test_a_fickle_policy_is_found() -> None:
    with pytest.raises(AssertionError, match="decided differently"):
        contract_of(Fickle).test_the_same_traffic_is_decided_alike()


def test_a_watched_policy_decides_as_it_does_alone() -> None:
    for name in POLICIES:
        problems: list[str] = []
        alone = run_traffic(POLICIES[name](), 3)
        assert run_traffic(watched(POLICIES[name](), problems), 3).decisions == alone.decisions


def test_traffic_is_hard_enough() -> None:
    """Over the contract's runs requests are preempted, wait for blocks, and are cut."""
    reasons = {
        decision.reason.value
        for seed in range(PolicyContract.num_runs)
        for decisions in run_traffic(Fcfs(), seed).decisions
        for decision in decisions
    }
    assert {"preempted", "no_blocks", "no_row", "no_budget", "chunk", "in_flight"} <= reasons
