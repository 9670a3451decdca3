"""What every policy must do; inherit from it to test one of your own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fastgen_jax.request import FinishReason
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.testing.policy_traffic import PolicyRun, expected_tokens, run_traffic
from fastgen_jax.testing.policy_witness import watched


class PolicyContract(ABC):
    """Tests that pytest finds in a class which inherits from this one.

    The scheduler repairs a policy's bad answers and keeps its own promises whatever it is told. So
    two kinds of tests are here: that the policy's answers need no repair, and that requests are
    served with it. Traffic is random, from fixed seeds, on engines far too small for it.

        class TestMine(PolicyContract):
            def make_policy(self) -> Policy:
                return Mine()

    Attributes:
        num_runs: seeds that each test tries.
    """

    num_runs = 16

    @abstractmethod
    def make_policy(self) -> Policy:
        """A new policy object."""

    def test_its_answers_need_no_repair(self) -> None:
        """Orders are permutations, victims were offered, ranks are numbers, rules are rules."""
        for seed in range(self.num_runs):
            problems: list[str] = []
            run_traffic(watched(self.make_policy(), problems), seed)
            assert not problems, f"seed {seed}: {problems[0]}"

    def test_every_request_is_served(self) -> None:
        """All end, each with exactly its own tokens, however often it was preempted."""
        for seed, run in self._runs():
            assert run.is_finished, f"seed {seed}: requests starve"
            for completion in run.completions:
                if completion in run.aborted:
                    continue
                request = completion.request
                name = f"seed {seed}, request {request.request_id}"
                assert request.finish_reason is FinishReason.LENGTH, f"{name}: {request.error}"
                assert request.output_token_ids == expected_tokens(completion), name

    def test_steps_keep_their_limits(self) -> None:
        """No plan has too many tokens or rows, or two decisions about one request."""
        for seed, run in self._runs():
            assert not run.problems, f"seed {seed}: {run.problems[0]}"

    def test_the_same_traffic_is_decided_alike(self) -> None:
        """Decisions depend on requests and on the engine's clock, and on nothing else."""
        for (seed, first), (_, second) in zip(self._runs(), self._runs(), strict=True):
            assert first.decisions == second.decisions, f"seed {seed}: decided differently"

    def _runs(self) -> list[tuple[int, PolicyRun]]:
        return [(seed, run_traffic(self.make_policy(), seed)) for seed in range(self.num_runs)]
